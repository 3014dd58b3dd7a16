"""Raw files → prepared data → batches."""

from loractr.data.prepare import cached as cached
from loractr.data.prepare import prepare as prepare
from loractr.data.store import Prepared as Prepared
from loractr.data.store import open_prepared as open_prepared
