// Products of rows with the matrix of their own group. Groups are runs of rows, or, with `order`,
// runs of a list of rows; rows before the first edge belong to no group.
#include "products.h"

Sgemm* loractr_sgemm;
Dgemm* loractr_dgemm;

namespace {

constexpr int64_t BLOCK = 512;  // rows multiplied at once where they have to be gathered first

template <class T>
void gather(const T* x, const int64_t* order, int64_t count, int64_t width, T* to) {
  for (int64_t i = 0; i < count; i++)
    std::copy(x + order[i] * width, x + (order[i] + 1) * width, to + i * width);
}

struct Piece {
  int64_t group, start, stop;
};

// The rows of all groups in pieces of at most `most` rows.
std::vector<Piece> pieces(const int64_t* edges, int64_t groups, int64_t most) {
  std::vector<Piece> found;
  for (int64_t g = 0; g < groups; g++)
    for (int64_t start = edges[g]; start < edges[g + 1]; start += most)
      found.push_back({g, start, std::min(start + most, edges[g + 1])});
  return found;
}

// y[n] += x[n] @ matrix_g, matrix (groups, wide, tall); with `turned` matrix (groups, tall, wide)
// is transposed. Rows of no group are left alone.
template <class T>
void product(const T* x, const T* matrix, T* y, const int64_t* order, const int64_t* edges,
             int64_t groups, int64_t wide, int64_t tall, bool turned) {
  const int64_t rows = edges[groups] - edges[0];
  const bool parallel = rows * (wide + tall) > MIN_PARALLEL;
  const auto work = pieces(edges, groups, order || parallel ? BLOCK : rows + 1);
#pragma omp parallel num_threads(loractr_threads) if (parallel)
  {
    std::vector<T> from(order ? BLOCK * wide : 0), to(order ? BLOCK * tall : 0);
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < work.size(); i++) {
      const Piece p = work[i];
      const int64_t count = p.stop - p.start;
      const T* own = matrix + p.group * wide * tall;
      if (order == nullptr) {
        multiply(false, turned, count, tall, wide, x + p.start * wide, own, true,
                 y + p.start * tall);
        continue;
      }
      gather(x, order + p.start, count, wide, from.data());
      multiply(false, turned, count, tall, wide, from.data(), own, false, to.data());
      for (int64_t r = 0; r < count; r++) {
        T* row = y + order[p.start + r] * tall;
        const T* made = to.data() + r * tall;
        for (int64_t c = 0; c < tall; c++) row[c] += made[c];
      }
    }
  }
}

// gradient_g = sum over the group's rows of a[n]ᵀ b[n], (groups, tall, wide); 0 without rows.
template <class T>
void outer(const T* a, const T* b, T* gradient, const int64_t* order, const int64_t* edges,
           int64_t groups, int64_t tall, int64_t wide) {
#pragma omp parallel num_threads(loractr_threads) \
    if ((edges[groups] - edges[0]) * (wide + tall) > MIN_PARALLEL)
  {
    std::vector<T> left(order ? BLOCK * tall : 0), right(order ? BLOCK * wide : 0);
#pragma omp for schedule(dynamic)
    for (int64_t g = 0; g < groups; g++) {
      T* own = gradient + g * tall * wide;
      const int64_t start = edges[g], stop = edges[g + 1];
      if (start == stop) std::fill(own, own + tall * wide, T(0));
      if (order == nullptr) {
        if (start < stop)
          multiply(true, false, tall, wide, stop - start, a + start * tall, b + start * wide, false,
                   own);
        continue;
      }
      for (int64_t at = start; at < stop; at += BLOCK) {
        const int64_t count = std::min(BLOCK, stop - at);
        gather(a, order + at, count, tall, left.data());
        gather(b, order + at, count, wide, right.data());
        multiply(true, false, tall, wide, count, left.data(), right.data(), at > start, own);
      }
    }
  }
}

}  // namespace

extern "C" void use_products(void* single, void* twice) {
  loractr_sgemm = reinterpret_cast<Sgemm*>(single);
  loractr_dgemm = reinterpret_cast<Dgemm*>(twice);
}

#define EXPORT(T, S)                                                                           \
  extern "C" void grouped_product_##S(const T* x, const T* matrix, T* y, const int64_t* order, \
                                      const int64_t* edges, int64_t groups, int64_t wide,      \
                                      int64_t tall, int64_t turned) {                          \
    product<T>(x, matrix, y, order, edges, groups, wide, tall, turned);                        \
  }                                                                                            \
  extern "C" void grouped_outer_##S(const T* a, const T* b, T* gradient, const int64_t* order, \
                                    const int64_t* edges, int64_t groups, int64_t tall,        \
                                    int64_t wide) {                                            \
    outer<T>(a, b, gradient, order, edges, groups, tall, wide);                                \
  }

EXPORT(float, float32)
EXPORT(double, float64)
