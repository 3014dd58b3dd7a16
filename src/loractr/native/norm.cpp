// Batch norm of groups of rows: each group by its own statistics, weight and bias. Groups are runs of
// rows, or, with `order`, runs of a list of rows; rows before the first edge are left alone.
//
// Sums are taken in the elements' own type over a few rows, then in float64.
#include "kernels.h"

namespace {

constexpr int64_t PANEL = 256;  // columns worked on together
constexpr int64_t ROWS = 64;    // rows summed before they join the total

template <class T>
struct Rows {
  const int64_t* order;
  int64_t start, count, width;

  T* of(T* x, int64_t n) const { return x + (order ? order[start + n] : start + n) * width; }
  const T* of(const T* x, int64_t n) const { return of(const_cast<T*>(x), n); }
};

// total[c] += sum over rows of f(row, column), for K sums at once.
template <class T, int K, class F>
void add_up(int64_t rows, int64_t columns, double (*total)[PANEL], F f) {
  T part[K][PANEL];
  for (int64_t start = 0; start < rows; start += ROWS) {
    for (auto& sums : part) std::fill(sums, sums + columns, T(0));
    for (int64_t r = start; r < std::min(start + ROWS, rows); r++) f(r, part);
    for (int k = 0; k < K; k++)
      for (int64_t c = 0; c < columns; c++) total[k][c] += part[k][c];
  }
}

template <class T>
struct Norm {
  double momentum, eps;
  const T* weight;
  const T* bias;
  T* running_mean;
  T* running_var;
};

// Mean and 1 / sqrt(var + eps) of one group's columns: of its rows, or the running ones.
template <class T>
void moments(const T* x, Rows<T> rows, int64_t columns, const Norm<T>& n, bool trains, T* mean,
             T* factor) {
  if (!trains) {
    for (int64_t c = 0; c < columns; c++) {
      mean[c] = n.running_mean[c];
      factor[c] = T(1 / std::sqrt(double(n.running_var[c]) + n.eps));
    }
    return;
  }
  double sum[1][PANEL] = {}, spread[1][PANEL] = {};
  add_up<T, 1>(rows.count, columns, sum, [&](int64_t r, T(*part)[PANEL]) {
    const T* row = rows.of(x, r);
#pragma omp simd
    for (int64_t c = 0; c < columns; c++) part[0][c] += row[c];
  });
  for (int64_t c = 0; c < columns; c++) mean[c] = T(sum[0][c] / rows.count);
  add_up<T, 1>(rows.count, columns, spread, [&](int64_t r, T(*part)[PANEL]) {
    const T* row = rows.of(x, r);
#pragma omp simd
    for (int64_t c = 0; c < columns; c++) part[0][c] += (row[c] - mean[c]) * (row[c] - mean[c]);
  });
  for (int64_t c = 0; c < columns; c++) {
    factor[c] = T(1 / std::sqrt(spread[0][c] / rows.count + n.eps));
    n.running_mean[c] += T(n.momentum * (sum[0][c] / rows.count - n.running_mean[c]));
    n.running_var[c] += T(n.momentum * (spread[0][c] / (rows.count - 1) - n.running_var[c]));
  }
}

template <class T>
void forward_panel(const T* x, T* y, Rows<T> rows, int64_t columns, const Norm<T>& n, bool trains,
                   T* mean, T* factor) {
  moments(x, rows, columns, n, trains, mean, factor);
  T scale[PANEL], shift[PANEL];
  for (int64_t c = 0; c < columns; c++) {
    scale[c] = factor[c] * n.weight[c];
    shift[c] = n.bias[c] - mean[c] * scale[c];
  }
  for (int64_t r = 0; r < rows.count; r++) {
    const T* from = rows.of(x, r);
    T* to = rows.of(y, r);
#pragma omp simd
    for (int64_t c = 0; c < columns; c++) to[c] = from[c] * scale[c] + shift[c];
  }
}

// dweight = sum of g * z and dbias = sum of g, with z = (x - mean) * factor; dx where it is wanted.
template <class T>
void backward_panel(const T* x, const T* g, T* dx, Rows<T> rows, int64_t columns, const T* mean,
                    const T* factor, const T* weight, bool trains, T* dweight, T* dbias) {
  double sums[2][PANEL] = {};
  add_up<T, 2>(rows.count, columns, sums, [&](int64_t r, T(*part)[PANEL]) {
    const T *row = rows.of(x, r), *grad = rows.of(g, r);
#pragma omp simd
    for (int64_t c = 0; c < columns; c++) {
      part[0][c] += grad[c];
      part[1][c] += grad[c] * ((row[c] - mean[c]) * factor[c]);
    }
  });
  for (int64_t c = 0; c < columns; c++) {
    dbias[c] = T(sums[0][c]);
    dweight[c] = T(sums[1][c]);
  }
  if (dx == nullptr) return;
  T scale[PANEL], along[PANEL], shift[PANEL];  // dx = scale * g - along * (x - mean) - shift
  for (int64_t c = 0; c < columns; c++) {
    scale[c] = weight[c] * factor[c];
    along[c] = trains ? T(scale[c] * factor[c] * sums[1][c] / rows.count) : T(0);
    shift[c] = trains ? T(scale[c] * sums[0][c] / rows.count) : T(0);
  }
  for (int64_t r = 0; r < rows.count; r++) {
    const T *row = rows.of(x, r), *grad = rows.of(g, r);
    T* to = rows.of(dx, r);
#pragma omp simd
    for (int64_t c = 0; c < columns; c++)
      to[c] = scale[c] * grad[c] - along[c] * (row[c] - mean[c]) - shift[c];
  }
}

// f(rows of a group, first column, columns, place of the group's own column) for all groups and
// panels. A group of fewer than two rows has no variance: it goes by its running statistics.
template <class T, class F>
void over_groups(const int64_t* order, const int64_t* edges, int64_t groups, int64_t width, F f) {
  const int64_t panels = (width + PANEL - 1) / PANEL;
#pragma omp parallel for num_threads(loractr_threads) collapse(2) schedule(dynamic) \
    if ((edges[groups] - edges[0]) * width > MIN_PARALLEL)
  for (int64_t group = 0; group < groups; group++)
    for (int64_t panel = 0; panel < panels; panel++) {
      const int64_t count = edges[group + 1] - edges[group], c = panel * PANEL;
      if (count > 0)
        f(Rows<T>{order, edges[group], count, width}, c, std::min(PANEL, width - c),
          group * width + c);
    }
}

}  // namespace

#define EXPORT(T, S)                                                                              \
  extern "C" void norm_##S(const T* x, T* y, const int64_t* order, const int64_t* edges,          \
                           int64_t groups, int64_t width, double momentum, double eps,            \
                           const T* weight, const T* bias, T* running_mean, T* running_var,       \
                           int64_t trains, T* mean, T* factor) {                                  \
    over_groups<T>(order, edges, groups, width, [=](Rows<T> r, int64_t c, int64_t n, int64_t o) { \
      const Norm<T> own{momentum, eps, weight + o, bias + o, running_mean + o, running_var + o};  \
      forward_panel<T>(x + c, y + c, r, n, own, trains && r.count > 1, mean + o, factor + o);     \
    });                                                                                           \
  }                                                                                               \
  extern "C" void norm_backward_##S(const T* x, const T* g, T* dx, const int64_t* order,          \
                                    const int64_t* edges, int64_t groups, int64_t width,          \
                                    const T* mean, const T* factor, const T* weight,              \
                                    int64_t trains, T* dweight, T* dbias) {                       \
    over_groups<T>(order, edges, groups, width, [=](Rows<T> r, int64_t c, int64_t n, int64_t o) { \
      backward_panel<T>(x + c, g + c, dx ? dx + c : nullptr, r, n, mean + o, factor + o,          \
                        weight + o, trains && r.count > 1, dweight + o, dbias + o);               \
    });                                                                                           \
  }

EXPORT(float, float32)
EXPORT(double, float64)
