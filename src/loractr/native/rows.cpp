// Which rows of an embedding table a batch reads, and optimisers that move those alone.
#include "rows.h"

namespace {

constexpr int DIGIT = 12;  // most bits of an id that one pass of the sort looks at

// The distinct ids in rising order, and for each the places where it stands, in their order.
template <class I>
int64_t group(const I* ids, int64_t count, int64_t* order, int64_t* edges, int64_t* rows) {
  thread_local std::vector<uint64_t> pairs, turned;  // id in the upper half, place in the lower
  pairs.resize(count);
  turned.resize(count);
  uint64_t all = 0;
  for (int64_t n = 0; n < count; n++) {
    all |= uint64_t(ids[n]);
    pairs[n] = uint64_t(ids[n]) << 32 | uint64_t(n);
  }
  int bits = 0;
  while (all >> bits) bits++;
  const int passes = (bits + DIGIT - 1) / DIGIT, digit = passes ? (bits + passes - 1) / passes : 0;
  std::vector<int64_t> starts(size_t(1) << digit);
  for (int pass = 0; pass < passes; pass++) {
    const int shift = 32 + pass * digit;
    const uint64_t mask = (uint64_t(1) << digit) - 1;
    std::fill(starts.begin(), starts.end(), 0);
    for (uint64_t pair : pairs) starts[pair >> shift & mask]++;
    int64_t before = 0;
    for (int64_t& start : starts) {
      const int64_t own = start;
      start = before;
      before += own;
    }
    for (uint64_t pair : pairs) turned[starts[pair >> shift & mask]++] = pair;
    pairs.swap(turned);
  }
  int64_t distinct = 0;
  for (int64_t n = 0; n < count; n++) {
    const int64_t row = int64_t(pairs[n] >> 32);
    order[n] = int64_t(pairs[n] & 0xffffffffu);
    if (n == 0 || rows[distinct - 1] != row) {
      edges[distinct] = n;
      rows[distinct++] = row;
    }
  }
  edges[distinct] = count;
  return distinct;
}

// One expert's step of an Adam of its own.
struct Own {
  double scale;   // of the gradient
  double size;    // rate / (1 - beta1^t)
  double bias;    // 1 / sqrt(1 - beta2^t)
  double shrink;  // 1 - rate * decoupled weight decay
  double keep;    // decay of the moving average
};

}  // namespace

#define EXPORT_IDS(I, S)                                                                          \
  extern "C" void group_ids_##S(const I* ids, int64_t count, int64_t* order, int64_t* edges,      \
                                int64_t* rows, int64_t* distinct) {                               \
    *distinct = group(ids, count, order, edges, rows);                                            \
  }

EXPORT_IDS(int32_t, int32)
EXPORT_IDS(int64_t, int64)

#define EXPORT(T, S)                                                                              \
  extern "C" void row_sums_##S(const T* values, const int64_t* order, const int64_t* edges,       \
                               int64_t count, int64_t width, T* sums) {                           \
    const Gradient<T> gradient{values, order, edges, 1, count};                                   \
    over_rows<T>(nullptr, count, width, {},                                                       \
                 [=](int64_t u, int64_t, T*) { gradient.sum(u, width, sums + u * width); });      \
  }                                                                                               \
  extern "C" void lazy_adam_##S(T* w, T* m, T* v, const int64_t* rows, int64_t count,             \
                                int64_t width, const T* values, const int64_t* order,             \
                                const int64_t* edges, double scale, double size, double beta1,    \
                                double beta2, double eps) {                                       \
    const Gradient<T> gradient{values, order, edges, scale, count};                               \
    over_rows<T>(rows, count, width, {w, m, v}, [=](int64_t u, int64_t row, T* g) {               \
      gradient.sum(u, width, g);                                                                  \
      T *weight = w + row * width, *first = m + row * width, *second = v + row * width;           \
      for (int64_t c = 0; c < width; c++) {                                                       \
        first[c] += T(1 - beta1) * (g[c] - first[c]);                                             \
        second[c] += T(1 - beta2) * (g[c] * g[c] - second[c]);                                    \
        weight[c] -= T(size) * first[c] / (std::sqrt(second[c]) + T(eps));                        \
      }                                                                                           \
    });                                                                                           \
  }                                                                                               \
  extern "C" void rowwise_adagrad_##S(T* w, T* total, const int64_t* rows, int64_t count,         \
                                      int64_t width, const T* values, const int64_t* order,       \
                                      const int64_t* edges, double scale, double rate,            \
                                      double eps) {                                               \
    const Gradient<T> gradient{values, order, edges, scale, count};                               \
    over_rows<T>(rows, count, width, {w}, [=](int64_t u, int64_t row, T* g) {                     \
      gradient.sum(u, width, g);                                                                  \
      T square = 0;                                                                               \
      for (int64_t c = 0; c < width; c++) square += g[c] * g[c];                                  \
      total[row] += square / T(width);                                                            \
      const T size = T(rate) / (std::sqrt(total[row]) + T(eps));                                  \
      for (int64_t c = 0; c < width; c++) w[row * width + c] -= size * g[c];                      \
    });                                                                                           \
  }                                                                                               \
  extern "C" void expert_adam_##S(T* w, T* m, T* v, T* average, const int64_t* rows,              \
                                  int64_t count, int64_t width, const T* values,                  \
                                  const double* scales, double decay, double beta1, double beta2, \
                                  double eps) {                                                   \
    const Own* steps = reinterpret_cast<const Own*>(scales);                                      \
    over_rows<T>(rows, count, width, {}, [=](int64_t u, int64_t row, T*) {                        \
      const T scale = T(steps[u].scale), size = T(steps[u].size), bias = T(steps[u].bias);        \
      const T shrink = T(steps[u].shrink), keep = T(steps[u].keep), small = T(eps);               \
      const T slow = T(beta2), quick = T(1 - beta1), quicker = T(1 - beta2), coupled = T(decay);  \
      T *weight = w + row * width, *first = m + row * width, *second = v + row * width;           \
      const T* gradient = values + u * width;                                                     \
      _Pragma("omp simd") for (int64_t c = 0; c < width; c++) {                                   \
        const T g = gradient[c] * scale + coupled * weight[c];                                    \
        first[c] += quick * (g - first[c]);                                                       \
        second[c] = slow * second[c] + quicker * g * g;                                           \
        weight[c] =                                                                               \
            weight[c] * shrink - size * first[c] / (std::sqrt(second[c]) * bias + small);         \
      }                                                                                           \
      if (average == nullptr) return;                                                             \
      T* mean = average + row * width;                                                            \
      for (int64_t c = 0; c < width; c++) mean[c] = weight[c] + keep * (mean[c] - weight[c]);     \
    });                                                                                           \
  }

EXPORT(float, float32)
EXPORT(double, float64)
