// How many threads work. Told by the caller: a thread of Python's need not inherit torch's number.
#include "kernels.h"

int loractr_threads = 1;

extern "C" void use_threads(int count) { loractr_threads = count; }
