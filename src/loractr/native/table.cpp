// Reading rows of an embedding table whose gradient is as large as the table.
#include "rows.h"

namespace {

// Vectors of the fields of `count` rows: table (size, width), ids (count, fields), out (count,
// fields, width). Where `linear` (size) is given, terms (count) are sums of its numbers over the
// fields. Tells how many ids are no row of the table.
template <class T>
void read(const T* table, const T* linear, const int64_t* ids, T* out, T* terms, int64_t size,
          int64_t count, int64_t fields, int64_t width, int64_t* missing) {
  const int64_t last = count * fields - 1;
  int64_t lost = 0;
#pragma omp parallel for num_threads(loractr_threads) schedule(static) reduction(+ : lost) \
    if (count * fields * width > MIN_PARALLEL)
  for (int64_t n = 0; n < count; n++) {
    T sum = 0;
    for (int64_t at = n * fields; at < (n + 1) * fields; at++) {
      const int64_t row = ids[at], later = ids[std::min(at + AHEAD, last)];
      if (row < 0 || row >= size) {
        lost++;
        continue;
      }
      if (later >= 0 && later < size) fetch<T, 0>(table, later, width);
      const T* from = table + row * width;
      for (int64_t c = 0; c < width; c++) out[at * width + c] = from[c];
      if (linear) sum += linear[row];
    }
    if (terms) terms[n] = sum;
  }
  *missing = lost;
}

// The gradients of whole tables, of those that are asked for. Each thread writes a span of rows, and
// adds what was read there in the order of reading: sums do not depend on the number of threads.
template <class T>
void spread(const T* grad, const T* of_terms, const int64_t* ids, T* sums, T* linear_sums,
            int64_t size, int64_t count, int64_t fields, int64_t width) {
  const bool small = (count * fields + size) * width <= MIN_PARALLEL;
  const int64_t parts = small ? 1 : loractr_threads;
#pragma omp parallel for num_threads(loractr_threads) schedule(static, 1) if (parts > 1)
  for (int64_t part = 0; part < parts; part++) {
    const int64_t first = size * part / parts, end = size * (part + 1) / parts;
    if (sums) std::fill(sums + first * width, sums + end * width, T(0));
    if (linear_sums) std::fill(linear_sums + first, linear_sums + end, T(0));
    for (int64_t n = 0; n < count; n++)
      for (int64_t at = n * fields; at < (n + 1) * fields; at++) {
        const int64_t row = ids[at];
        if (row < first || row >= end) continue;
        if (linear_sums) linear_sums[row] += of_terms[n];
        if (!sums) continue;
        T* to = sums + row * width;
#pragma omp simd
        for (int64_t c = 0; c < width; c++) to[c] += grad[at * width + c];
      }
  }
}

}  // namespace

#define EXPORT(T, S)                                                                             \
  extern "C" void look_up_##S(const T* table, const T* linear, const int64_t* ids, T* out,       \
                              T* terms, int64_t size, int64_t count, int64_t fields,             \
                              int64_t width, int64_t* missing) {                                 \
    read(table, linear, ids, out, terms, size, count, fields, width, missing);                   \
  }                                                                                              \
  extern "C" void look_up_backward_##S(const T* grad, const T* of_terms, const int64_t* ids,     \
                                       T* sums, T* linear_sums, int64_t size, int64_t count,     \
                                       int64_t fields, int64_t width) {                          \
    spread(grad, of_terms, ids, sums, linear_sums, size, count, fields, width);                  \
  }

EXPORT(float, float32)
EXPORT(double, float64)
