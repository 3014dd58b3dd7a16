// Interactions of the fields of a row: attention of AutoInt, what stands between CIN's products, sums
// of inner products.
#include "kernels.h"

namespace {

template <class T>
void softmax(T* score, int64_t count) {
  T most = score[0], sum = 0;
  for (int64_t j = 1; j < count; j++) most = score[j] > most ? score[j] : most;
  for (int64_t j = 0; j < count; j++) sum += score[j] = std::exp(score[j] - most);
  for (int64_t j = 0; j < count; j++) score[j] /= sum;
}

// SIZE: width of a head where it is known at compile time, else 0.
template <class T, int SIZE>
void attend(const T* q, const T* k, const T* v, T* out, T* share, int64_t rows, int64_t fields,
            int64_t heads, int64_t width) {
  const int64_t size = SIZE ? SIZE : width, step = heads * size;
#pragma omp parallel for num_threads(loractr_threads) schedule(static) \
    if (rows * fields * step > MIN_PARALLEL)
  for (int64_t n = 0; n < rows; n++)
    for (int64_t h = 0; h < heads; h++)
      for (int64_t i = 0; i < fields; i++) {
        const int64_t base = n * fields * step + h * size;
        T* a = share + ((n * heads + h) * fields + i) * fields;
        const T* qi = q + base + i * step;
        for (int64_t j = 0; j < fields; j++) {
          const T* kj = k + base + j * step;
          T sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t d = 0; d < size; d++) sum += qi[d] * kj[d];
          a[j] = sum;
        }
        softmax(a, fields);
        T* yi = out + base + i * step;
        for (int64_t d = 0; d < size; d++) yi[d] = 0;
        for (int64_t j = 0; j < fields; j++) {
          const T* vj = v + base + j * step;
#pragma omp simd
          for (int64_t d = 0; d < size; d++) yi[d] += a[j] * vj[d];
        }
      }
}

template <class T, int SIZE>
void attend_backward(const T* g, const T* q, const T* k, const T* v, const T* share, T* dq, T* dk,
                     T* dv, int64_t rows, int64_t fields, int64_t heads, int64_t width) {
  const int64_t size = SIZE ? SIZE : width, step = heads * size;
#pragma omp parallel num_threads(loractr_threads) if (rows * fields * step > MIN_PARALLEL)
  {
    std::vector<T> da(fields);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < rows; n++) {
      const int64_t row = n * fields * step;
      for (T* d : {dq, dk, dv}) std::fill(d + row, d + row + fields * step, T(0));
      for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < fields; i++) {
          const int64_t base = row + h * size, at = base + i * step;
          const T* a = share + ((n * heads + h) * fields + i) * fields;
          T mean = 0;
          for (int64_t j = 0; j < fields; j++) {
            const T* vj = v + base + j * step;
            T* dvj = dv + base + j * step;
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t d = 0; d < size; d++) {
              sum += g[at + d] * vj[d];
              dvj[d] += a[j] * g[at + d];
            }
            da[j] = sum;
            mean += a[j] * sum;
          }
          for (int64_t j = 0; j < fields; j++) {
            const T ds = a[j] * (da[j] - mean);
            const int64_t other = base + j * step;
#pragma omp simd
            for (int64_t d = 0; d < size; d++) {
              dq[at + d] += ds * k[other + d];
              dk[other + d] += ds * q[at + d];
            }
          }
        }
    }
  }
}

// What is not a number stays so, as in torch.
template <class T>
inline T relu(T x) {
  return x <= 0 ? T(0) : x;
}

// Of h (rows, elements, width). pooled (rows, width - from): sums of ReLU(h) over the elements,
// columns `from` and up. pairs (rows, elements, fields * onward): the first `onward` columns of
// ReLU(h) times each column of first (rows, elements, fields); not where onward = 0.
template <class T>
void cin(const T* h, const T* first, T* pairs, T* pooled, int64_t rows, int64_t elements,
         int64_t width, int64_t onward, int64_t from, int64_t fields) {
#pragma omp parallel for num_threads(loractr_threads) schedule(static) \
    if (rows * elements * width > MIN_PARALLEL)
  for (int64_t n = 0; n < rows; n++) {
    T* sum = pooled + n * (width - from);
    std::fill(sum, sum + width - from, T(0));
    for (int64_t k = 0; k < elements; k++) {
      const int64_t at = n * elements + k;
      const T* own = h + at * width;
#pragma omp simd
      for (int64_t c = from; c < width; c++) sum[c - from] += relu(own[c]);
      if (onward == 0) continue;
      for (int64_t f = 0; f < fields; f++) {
        const T factor = first[at * fields + f];
        T* to = pairs + (at * fields + f) * onward;
#pragma omp simd
        for (int64_t c = 0; c < onward; c++) to[c] = factor * relu(own[c]);
      }
    }
  }
}

template <class T>
void cin_backward(const T* h, const T* first, const T* dpairs, const T* dpooled, T* dh, T* dfirst,
                  int64_t rows, int64_t elements, int64_t width, int64_t onward, int64_t from,
                  int64_t fields) {
#pragma omp parallel for num_threads(loractr_threads) schedule(static) \
    if (rows * elements * width > MIN_PARALLEL)
  for (int64_t n = 0; n < rows; n++) {
    const T* sum = dpooled + n * (width - from);
    for (int64_t k = 0; k < elements; k++) {
      const int64_t at = n * elements + k;
      const T* own = h + at * width;
      T* d = dh + at * width;
      std::fill(d, d + width, T(0));
      for (int64_t f = 0; onward > 0 && f < fields; f++) {
        const T* g = dpairs + (at * fields + f) * onward;
        const T factor = first[at * fields + f];
        T along = 0;
#pragma omp simd reduction(+ : along)
        for (int64_t c = 0; c < onward; c++) {
          d[c] += factor * g[c];
          along += relu(own[c]) * g[c];
        }
        dfirst[at * fields + f] = along;
      }
#pragma omp simd
      for (int64_t c = from; c < width; c++) d[c] += sum[c - from];
#pragma omp simd
      for (int64_t c = 0; c < width; c++) d[c] = own[c] <= 0 ? T(0) : d[c];
    }
  }
}

constexpr int64_t BLOCK = 64;  // elements of a vector that are summed together

// Of e (rows, fields, size): half the sum over the elements of (sum of all fields)^2 - sum of squares.
template <class T>
void pairwise(const T* e, T* out, int64_t rows, int64_t fields, int64_t size) {
#pragma omp parallel for num_threads(loractr_threads) schedule(static) \
    if (rows * fields * size > MIN_PARALLEL)
  for (int64_t n = 0; n < rows; n++) {
    T found = 0;
    for (int64_t start = 0; start < size; start += BLOCK) {
      const int64_t width = std::min(BLOCK, size - start);
      T total[BLOCK] = {}, squares = 0;
      for (int64_t i = 0; i < fields; i++) {
        const T* own = e + (n * fields + i) * size + start;
#pragma omp simd reduction(+ : squares)
        for (int64_t c = 0; c < width; c++) {
          total[c] += own[c];
          squares += own[c] * own[c];
        }
      }
      T square = 0;
#pragma omp simd reduction(+ : square)
      for (int64_t c = 0; c < width; c++) square += total[c] * total[c];
      found += square - squares;
    }
    out[n] = found / 2;
  }
}

// Its gradient: g times the sum of all other fields.
template <class T>
void pairwise_backward(const T* e, const T* g, T* de, int64_t rows, int64_t fields, int64_t size) {
#pragma omp parallel for num_threads(loractr_threads) schedule(static) \
    if (rows * fields * size > MIN_PARALLEL)
  for (int64_t n = 0; n < rows; n++)
    for (int64_t start = 0; start < size; start += BLOCK) {
      const int64_t width = std::min(BLOCK, size - start), at = n * fields * size + start;
      T total[BLOCK] = {};
      for (int64_t i = 0; i < fields; i++)
#pragma omp simd
        for (int64_t c = 0; c < width; c++) total[c] += e[at + i * size + c];
      for (int64_t i = 0; i < fields; i++)
#pragma omp simd
        for (int64_t c = 0; c < width; c++)
          de[at + i * size + c] = g[n] * (total[c] - e[at + i * size + c]);
    }
}

}  // namespace

#define EXPORT(T, S)                                                                             \
  extern "C" void attention_##S(const T* q, const T* k, const T* v, T* out, T* share,            \
                                int64_t rows, int64_t fields, int64_t heads, int64_t size) {     \
    auto* f = size == 8 ? attend<T, 8> : size == 16 ? attend<T, 16> : attend<T, 0>;              \
    f(q, k, v, out, share, rows, fields, heads, size);                                           \
  }                                                                                              \
  extern "C" void attention_backward_##S(const T* g, const T* q, const T* k, const T* v,         \
                                         const T* share, T* dq, T* dk, T* dv, int64_t rows,      \
                                         int64_t fields, int64_t heads, int64_t size) {          \
    auto* f = size == 8    ? attend_backward<T, 8>                                               \
              : size == 16 ? attend_backward<T, 16>                                              \
                           : attend_backward<T, 0>;                                              \
    f(g, q, k, v, share, dq, dk, dv, rows, fields, heads, size);                                 \
  }                                                                                              \
  extern "C" void cin_##S(const T* h, const T* first, T* pairs, T* pooled, int64_t rows,               \
                          int64_t elements, int64_t width, int64_t onward, int64_t from,         \
                          int64_t fields) {                                                      \
    cin<T>(h, first, pairs, pooled, rows, elements, width, onward, from, fields);                \
  }                                                                                              \
  extern "C" void cin_backward_##S(const T* h, const T* first, const T* dpairs,                  \
                                   const T* dpooled, T* dh, T* dfirst, int64_t rows,             \
                                   int64_t elements, int64_t width, int64_t onward,              \
                                   int64_t from, int64_t fields) {                               \
    cin_backward<T>(h, first, dpairs, dpooled, dh, dfirst, rows, elements, width, onward, from,  \
                    fields);                                                                     \
  }                                                                                              \
  extern "C" void fm_##S(const T* e, T* out, int64_t rows, int64_t fields, int64_t size) {       \
    pairwise(e, out, rows, fields, size);                                                        \
  }                                                                                              \
  extern "C" void fm_backward_##S(const T* e, const T* g, T* de, int64_t rows, int64_t fields,   \
                                  int64_t size) {                                                \
    pairwise_backward(e, g, de, rows, fields, size);                                             \
  }

EXPORT(float, float32)
EXPORT(double, float64)
