// ReLU and dropout, alone and together.
#include "masks.h"

namespace {

// y = f(x, factor) for all elements, a block at a time.
template <class T, class F>
void masked(const T* x, T* y, int64_t n, uint64_t seed, uint32_t lost, T scale, F f) {
#pragma omp parallel for num_threads(loractr_threads) schedule(static) if (n > MIN_PARALLEL)
  for (int64_t start = 0; start < n; start += MASKED) {
    alignas(64) T factor[MASKED];
    factors(seed, start, lost, scale, factor);
    const T* from = x + start;
    T* to = y + start;
    const int64_t count = std::min(MASKED, n - start);
#pragma omp simd
    for (int64_t k = 0; k < count; k++) to[k] = f(from[k], factor[k]);
  }
}

template <class T>
void dropout(const T* x, T* y, int64_t n, uint64_t seed, uint32_t lost, T scale) {
  masked(x, y, n, seed, lost, scale, [](T v, T factor) { return v * factor; });
}

// Not "v > 0 ? v : 0": what is not a number stays so, as in torch.
template <class T>
void relu_dropout(T* x, int64_t n, uint64_t seed, uint32_t lost, T scale) {
  masked(x, x, n, seed, lost, scale, [](T v, T factor) { return v <= 0 ? T(0) : v * factor; });
}

template <class T>
void relu_dropout_backward(const T* y, const T* g, T* dx, int64_t n, T scale) {
#pragma omp parallel for simd num_threads(loractr_threads) schedule(static) if (n > MIN_PARALLEL)
  for (int64_t i = 0; i < n; i++) dx[i] = y[i] <= 0 ? T(0) : g[i] * scale;
}

}  // namespace

#define EXPORT(T, S)                                                                              \
  extern "C" void dropout_##S(const T* x, T* y, int64_t n, int64_t seed, int64_t lost,            \
                              double scale) {                                                     \
    dropout<T>(x, y, n, seed, lost, T(scale));                                                    \
  }                                                                                               \
  extern "C" void relu_dropout_##S(T* x, int64_t n, int64_t seed, int64_t lost, double scale) {   \
    relu_dropout<T>(x, n, seed, lost, T(scale));                                                  \
  }                                                                                               \
  extern "C" void relu_dropout_backward_##S(const T* y, const T* g, T* dx, int64_t n,             \
                                            double scale) {                                       \
    relu_dropout_backward<T>(y, g, dx, n, T(scale));                                              \
  }

EXPORT(float, float32)
EXPORT(double, float64)
