// Matrix products, those of the library that torch brings along (see `use_products`).
#pragma once

#include "kernels.h"

using Sgemm = void(const char*, const char*, const int*, const int*, const int*, const float*,
                   const float*, const int*, const float*, const int*, const float*, float*,
                   const int*);
using Dgemm = void(const char*, const char*, const int*, const int*, const int*, const double*,
                   const double*, const int*, const double*, const int*, const double*, double*,
                   const int*);
extern Sgemm* loractr_sgemm;
extern Dgemm* loractr_dgemm;

// C (m, n) = A (m, k) @ B (k, n) + beta * C, row after row, A and B transposed where asked. The
// library stores columns one after the other: it computes Cᵀ = Bᵀ Aᵀ.
template <class T>
void multiply(bool at, bool bt, int64_t m, int64_t n, int64_t k, const T* a, const T* b, bool add,
              T* c) {
  const int im = m, in = n, ik = k, lda = at ? m : k, ldb = bt ? k : n;
  const T one = 1, beta = add ? 1 : 0;
  if constexpr (sizeof(T) == 4)
    loractr_sgemm(bt ? "T" : "N", at ? "T" : "N", &in, &im, &ik, &one, b, &ldb, a, &lda, &beta, c,
                  &in);
  else
    loractr_dgemm(bt ? "T" : "N", at ? "T" : "N", &in, &im, &ik, &one, b, &ldb, a, &lda, &beta, c,
                  &in);
}
