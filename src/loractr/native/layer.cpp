// A linear layer, the low-rank experts beside it and the ReLU and dropout behind it, in one pass:
// a block of rows goes through all of it while it lies in the processor's cache.
//
//   y = dropout(relu(W x + b + up_e down_e x + offset_e)),     e: the expert of the row
//
// Experts may be absent, so may their offset, b, and the ending. Expert e has the rows from edges[e]
// to edges[e + 1]; those before edges[0] have none. Without experts `experts` is -1.
#include <memory>

#include "masks.h"
#include "products.h"

namespace {

constexpr int64_t BLOCK = 256;  // most rows of a block; every number of them is a multiple of MASKED

struct Shape {
  int64_t rows, wide, tall, rank, experts;
};

struct Ending {
  bool rectifies;
  uint64_t seed;
  uint32_t lost;
  double scale;
};

template <class T>
std::unique_ptr<T[]> scratch(int64_t count) {
  return std::unique_ptr<T[]>(new T[std::max<int64_t>(count, 1)]);
}

// The expert of a row; -1: it has none.
int64_t expert_of(int64_t row, const int64_t* edges, int64_t experts) {
  if (experts < 0) return -1;
  return std::upper_bound(edges, edges + experts + 1, row) - edges - 1;
}

// f(expert, first row, last row + 1) for each run of rows in [start, stop) that share an expert.
template <class F>
void runs(int64_t start, int64_t stop, const int64_t* edges, int64_t experts, F f) {
  while (start < stop) {
    const int64_t e = expert_of(start, edges, experts);
    const int64_t end = e < experts ? std::min(stop, edges[e + 1]) : stop;
    f(e, start, end);
    start = end;
  }
}

// Blocks of rows and how they are dealt to the threads. Blocks are smaller where there would be too
// few of them.
struct Parts {
  int64_t rows, block, count;

  explicit Parts(const Shape& s) : rows(s.rows), block(BLOCK), count(1) {
    if (loractr_threads == 1 || s.rows * (s.wide + s.tall) <= MIN_PARALLEL) return;
    const int64_t share = (s.rows / loractr_threads + MASKED - 1) / MASKED * MASKED;
    block = std::clamp(share, MASKED, BLOCK);
    count = std::min<int64_t>(loractr_threads, blocks());
  }
  int64_t blocks() const { return (rows + block - 1) / block; }
  int64_t start(int64_t part) const { return std::min(rows, blocks() * part / count * block); }
};

// y + shift in every row, and where there is no dropout to come, max(…, 0) of it. Not "v > 0 ? v : 0":
// what is not a number stays so, as in torch.
template <class T>
void finish(T* y, const T* shift, int64_t rows, int64_t tall, bool rectifies) {
  for (int64_t row = 0; row < rows; row++, y += tall) {
    if (rectifies) {
#pragma omp simd
      for (int64_t c = 0; c < tall; c++) {
        const T v = y[c] + shift[c];
        y[c] = v <= 0 ? T(0) : v;
      }
    } else {
#pragma omp simd
      for (int64_t c = 0; c < tall; c++) y[c] += shift[c];
    }
  }
}

// max(v, 0) times its factor for elements from `start` on, a multiple of MASKED.
template <class T>
void rectify(T* y, int64_t start, int64_t count, const Ending& ending) {
  alignas(64) T factor[MASKED];
  for (int64_t at = 0; at < count; at += MASKED) {
    factors(ending.seed, start + at, ending.lost, T(ending.scale), factor);
    T* to = y + at;
    const int64_t some = std::min(MASKED, count - at);
#pragma omp simd
    for (int64_t k = 0; k < some; k++) to[k] = to[k] <= 0 ? T(0) : to[k] * factor[k];
  }
}

template <class T>
void forward(const T* x, const T* w, const T* bias, const T* down, const T* up, const T* offset,
             T* y, T* inner, const int64_t* edges, const Shape& s, const Ending& ending) {
  const Parts parts(s);
#pragma omp parallel for num_threads(loractr_threads) schedule(static) if (parts.count > 1)
  for (int64_t part = 0; part < parts.count; part++) {
    const auto shift = scratch<T>(s.tall);
    const int64_t stop = parts.start(part + 1);
    for (int64_t at = parts.start(part); at < stop; at += parts.block) {
      const int64_t after = std::min(at + parts.block, stop);
      multiply(false, true, after - at, s.tall, s.wide, x + at * s.wide, w, false, y + at * s.tall);
      runs(at, after, edges, s.experts, [&](int64_t e, int64_t first, int64_t last) {
        const int64_t rows = last - first;
        if (e >= 0) {
          T* z = inner + first * s.rank;
          multiply(false, true, rows, s.rank, s.wide, x + first * s.wide,
                   down + e * s.rank * s.wide, false, z);
          multiply(false, true, rows, s.tall, s.rank, z, up + e * s.tall * s.rank, true,
                   y + first * s.tall);
        }
        const T* own = offset && e >= 0 ? offset + e * s.tall : nullptr;
        for (int64_t c = 0; c < s.tall; c++)
          shift[c] = (bias ? bias[c] : T(0)) + (own ? own[c] : T(0));
        finish(y + first * s.tall, shift.get(), rows, s.tall, ending.rectifies && !ending.lost);
      });
      if (ending.rectifies && ending.lost)
        rectify(y + at * s.tall, at * s.tall, (after - at) * s.tall, ending);
    }
  }
}

// Where gradients go, each null where nobody wants it. That of x is written, sums are added to what is
// there; those of experts begin with expert `first`.
template <class T>
struct Gradients {
  T *x, *w, *bias, *down, *up, *offset;
  int64_t first = 0;
};

// Sums that one part makes by itself, of the experts that it has rows of.
template <class T>
struct Sums {
  std::vector<T> w, bias, down, up, offset;
  int64_t first = 0;

  Gradients<T> like(const Gradients<T>& g, const Shape& s, int64_t first_expert, int64_t last) {
    first = std::max<int64_t>(first_expert, 0);
    const int64_t experts = last - first + 1;
    const auto room = [](std::vector<T>& sum, const T* wanted, int64_t size) {
      if (wanted) sum.resize(size);
      return wanted ? sum.data() : nullptr;
    };
    return {g.x,
            room(w, g.w, s.tall * s.wide),
            room(bias, g.bias, s.tall),
            room(down, g.down, experts * s.rank * s.wide),
            room(up, g.up, experts * s.tall * s.rank),
            room(offset, g.offset, experts * s.tall),
            first};
  }
  void add_to(const Gradients<T>& g, const Shape& s) const {
    const auto add = [](const std::vector<T>& sum, T* to) {
      for (size_t i = 0; i < sum.size(); i++) to[i] += sum[i];
    };
    add(w, g.w), add(bias, g.bias);
    if (g.down) add(down, g.down + first * s.rank * s.wide);
    if (g.up) add(up, g.up + first * s.tall * s.rank);
    if (g.offset) add(offset, g.offset + first * s.tall);
  }
};

// What went in, and what came of it.
template <class T>
struct Values {
  const T *y, *x, *inner, *w, *down, *up;
};

// Gradients of the rows [start, stop).
template <class T>
void backward_of(int64_t start, int64_t stop, int64_t block, const T* grad, const Values<T>& v,
                 const Gradients<T>& to, const int64_t* edges, const Shape& s,
                 const Ending& ending) {
  const auto masked = scratch<T>(ending.rectifies ? block * s.tall : 0);
  const auto thin = scratch<T>(block * s.rank);
  const auto sums = scratch<double>(s.tall);  // not T: before a norm they are 0 but for rounding
  for (int64_t at = start; at < stop; at += block) {
    const int64_t after = std::min(at + block, stop), count = (after - at) * s.tall;
    const T* g = grad + at * s.tall;
    if (ending.rectifies) {
      const T *made = v.y + at * s.tall, scale = T(ending.scale);
#pragma omp simd
      for (int64_t k = 0; k < count; k++) masked[k] = made[k] <= 0 ? T(0) : g[k] * scale;
      g = masked.get();
    }
    if (to.x) multiply(false, false, after - at, s.wide, s.tall, g, v.w, false, to.x + at * s.wide);
    if (to.w) multiply(true, false, s.tall, s.wide, after - at, g, v.x + at * s.wide, true, to.w);
    runs(at, after, edges, s.experts, [&](int64_t e, int64_t first, int64_t last) {
      const T* own = g + (first - at) * s.tall;
      const int64_t rows = last - first, place = e - to.first;
      if (to.bias || (to.offset && e >= 0)) {
        std::fill(sums.get(), sums.get() + s.tall, 0.0);
        for (int64_t row = 0; row < rows; row++)
          for (int64_t c = 0; c < s.tall; c++) sums[c] += own[row * s.tall + c];
        for (int64_t c = 0; c < s.tall; c++) {
          if (to.bias) to.bias[c] += T(sums[c]);
          if (to.offset && e >= 0) to.offset[place * s.tall + c] += T(sums[c]);
        }
      }
      if (e < 0) return;
      if (to.up)
        multiply(true, false, s.tall, s.rank, rows, own, v.inner + first * s.rank, true,
                 to.up + place * s.tall * s.rank);
      if (!to.x && !to.down) return;
      multiply(false, false, rows, s.rank, s.tall, own, v.up + e * s.tall * s.rank, false,
               thin.get());
      if (to.x)
        multiply(false, false, rows, s.wide, s.rank, thin.get(), v.down + e * s.rank * s.wide, true,
                 to.x + first * s.wide);
      if (to.down)
        multiply(true, false, s.rank, s.wide, rows, thin.get(), v.x + first * s.wide, true,
                 to.down + place * s.rank * s.wide);
    });
  }
}

// Part 0 adds to the result itself, the others to sums of their own, added up in their order.
template <class T>
void backward(const T* grad, const Values<T>& v, const Gradients<T>& to, const int64_t* edges,
              const Shape& s, const Ending& ending) {
  const Parts parts(s);
  std::vector<Sums<T>> sums(parts.count);
#pragma omp parallel for num_threads(loractr_threads) schedule(static) if (parts.count > 1)
  for (int64_t part = 0; part < parts.count; part++) {
    const int64_t start = parts.start(part), stop = parts.start(part + 1);
    Gradients<T> into = to;
    if (part > 0)
      into = sums[part].like(to, s, expert_of(start, edges, s.experts),
                             expert_of(stop - 1, edges, s.experts));
    backward_of(start, stop, parts.block, grad, v, into, edges, s, ending);
  }
  for (int64_t part = 1; part < parts.count; part++) sums[part].add_to(to, s);
}

}  // namespace

#define EXPORT(T, S)                                                                             \
  extern "C" void layer_##S(const T* x, const T* w, const T* bias, const T* down, const T* up,   \
                            const T* offset, T* y, T* inner, const int64_t* edges, int64_t rows, \
                            int64_t wide, int64_t tall, int64_t rank, int64_t experts,           \
                            int64_t rectifies, int64_t seed, int64_t lost, double scale) {       \
    forward<T>(x, w, bias, down, up, offset, y, inner, edges, {rows, wide, tall, rank, experts}, \
               {rectifies != 0, uint64_t(seed), uint32_t(lost), scale});                         \
  }                                                                                              \
  extern "C" void layer_backward_##S(                                                            \
      const T* grad, const T* y, const T* x, const T* inner, const T* w, const T* down,          \
      const T* up, T* dx, T* dw, T* dbias, T* ddown, T* dup, T* doffset, const int64_t* edges,   \
      int64_t rows, int64_t wide, int64_t tall, int64_t rank, int64_t experts,                   \
      int64_t rectifies, double scale) {                                                         \
    backward<T>(grad, {y, x, inner, w, down, up}, {dx, dw, dbias, ddown, dup, doffset}, edges,   \
                {rows, wide, tall, rank, experts}, {rectifies != 0, 0, 0, scale});               \
  }

EXPORT(float, float32)
EXPORT(double, float64)
