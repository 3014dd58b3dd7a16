// Adam on the rows that a batch reads, with what the others missed made up for: exact, not lazy.
#include "rows.h"

namespace {

// One step of Adam as it was taken: step `base + i` in place i.
struct Step {
  double size;        // rate / (1 - beta1^s)
  double bias;        // 1 / sqrt(1 - beta2^s)
  double shrink;      // 1 - rate * decoupled weight decay
  double keep;        // decay of the moving average
  double log_shrink;  // sums of logarithms since `base`
  double log_keep;
};

// A row that is left alone for k steps: its moments by then.
struct Power {
  double first, root;  // beta1^k, sqrt(beta2^k)
};

// All skipped steps of a row last moved at step c: what they take from the weight is the sum of
//   size * m_s / (bias * sqrt(v_s) + eps) = m * size * beta1^k * place / (sqrt(v) + eps * place)
// over s, with k = s - c and place = 1 / (bias * sqrt(beta2^k)): m times an integral, by a measure
// that is the same for all rows, of a function of `place`. Two points of Gauss's stand for it.
struct Tail {
  double sums[4];  // of the measure, and of it times powers 1 to 3 of (place - origin)
  double weight[2], place[2];
};

// Adam on a table whose rows stand at different steps: `last[r]` says at which one row r stands.
template <class T>
struct Adam {
  T *w, *m, *v, *average;
  int32_t* last;
  int64_t width;
  const Step* steps;
  const Power* powers;
  const Tail* tails;
  int64_t base, memory, early;  // rows last moved before step `early` are replayed step by step
  double beta1, beta2, eps, decay;

  // Bring a row to step `now`, as if every step since its last had brought a gradient of zeros.
  void replay(int64_t row, int64_t now, T* root) const {
    const int64_t from = last[row];
    if (from >= now) return;
    last[row] = int32_t(now);
    if (decay != 0) {
      for (int64_t s = from + 1; s <= now; s++) move<false>(row, s, nullptr);
      return;
    }
    T *first = m + row * width, *second = v + row * width;
    T alive = 0;
#pragma omp simd reduction(max : alive)
    for (int64_t c = 0; c < width; c++) {
      root[c] = std::sqrt(second[c]);
      alive = std::max(alive, std::abs(first[c]));
    }
    if (tails && from >= early)
      close(row, from, now, root);
    else
      walk(row, from, now, alive > 0 ? memory : 0, root);
    const Power left = powers[now - from];
    const T keeps = T(left.first), keeps_square = T(left.root * left.root);
#pragma omp simd
    for (int64_t c = 0; c < width; c++) {
      first[c] *= keeps;
      second[c] *= keeps_square;
    }
  }

  // All steps at once. A tail ends when the first moment is gone; weights shrink on.
  void close(int64_t row, int64_t from, int64_t now, const T* root) const {
    const Tail& tail = tails[from - base];
    const double end = steps[now - base].log_shrink;
    const double late = end - steps[std::min(now, from + memory) - base].log_shrink;
    const double after = late != 0 ? std::exp(late) : 1;
    const double all = end - steps[from - base].log_shrink;
    const T shrink = T(all != 0 ? std::exp(all) : 1);
    const T a = T(tail.weight[0] * after), b = T(tail.weight[1] * after);
    const T x = T(eps * tail.place[0]), y = T(eps * tail.place[1]);
    T* weight = w + row * width;
    const T* first = m + row * width;
#pragma omp simd
    for (int64_t c = 0; c < width; c++)
      weight[c] = weight[c] * shrink - first[c] * (a / (root[c] + x) + b / (root[c] + y));
  }

  // Step by step while the first moment `moves`; what is left is a product of numbers.
  void walk(int64_t row, int64_t from, int64_t now, int64_t moves, const T* root) const {
    const Step& end = steps[now - base];
    const bool shrinks = end.log_shrink != steps[from - base].log_shrink;
    const int64_t stop = average && shrinks ? now : std::min(now, from + moves);
    T* weight = w + row * width;
    T* mean = average ? average + row * width : nullptr;
    const T* first = m + row * width;
    for (int64_t s = from + 1; s <= stop; s++) {
      const Step& step = steps[s - base];
      const Power& power = powers[s - from];
      const T size = T(step.size * power.first), bias = T(step.bias * power.root);
      const T shrink = T(step.shrink), keep = T(step.keep), small = T(eps);
#pragma omp simd
      for (int64_t c = 0; c < width; c++)
        weight[c] = weight[c] * shrink - size * first[c] / (root[c] * bias + small);
      if (mean)
        for (int64_t c = 0; c < width; c++) mean[c] = weight[c] + keep * (mean[c] - weight[c]);
    }
    if (stop == now) return;
    const T shrink = T(std::exp(end.log_shrink - steps[stop - base].log_shrink));
    const T keep = T(std::exp(end.log_keep - steps[stop - base].log_keep));
    for (int64_t c = 0; c < width; c++) weight[c] *= shrink;
    if (mean)
      for (int64_t c = 0; c < width; c++) mean[c] = weight[c] + keep * (mean[c] - weight[c]);
  }

  // Step s of a row, with its gradient or with zeros: torch.optim.Adam and AdamW.
  template <bool has_gradient>
  void move(int64_t row, int64_t s, const T* gradient) const {
    const Step& step = steps[s - base];
    const T size = T(step.size), bias = T(step.bias), shrink = T(step.shrink), small = T(eps);
    const T slow = T(beta2), quick = T(1 - beta1), quicker = T(1 - beta2), coupled = T(decay);
    T *weight = w + row * width, *first = m + row * width, *second = v + row * width;
#pragma omp simd
    for (int64_t c = 0; c < width; c++) {
      const T g = (has_gradient ? gradient[c] : T(0)) + coupled * weight[c];
      first[c] += quick * (g - first[c]);
      second[c] = slow * second[c] + quicker * g * g;
      weight[c] = weight[c] * shrink - size * first[c] / (std::sqrt(second[c]) * bias + small);
    }
    if (average == nullptr) return;
    T* mean = average + row * width;
    const T keep = T(step.keep);
    for (int64_t c = 0; c < width; c++) mean[c] = weight[c] + keep * (mean[c] - weight[c]);
  }
};

// Step `now` joins the sums of every row that may have skipped it, and the two points follow.
void extend(Tail* tails, const Step* steps, const Power* powers, int64_t base, int64_t now,
            int64_t memory) {
  for (int64_t c = std::max(base, now - memory); c < now; c++) {
    Tail& tail = tails[c - base];
    const double origin = 1 / (steps[c + 1 - base].bias * powers[1].root);
    const Step& step = steps[now - base];
    const Power& power = powers[now - c];
    const double place = 1 / (step.bias * power.root), far = place - origin;
    const double measure = step.size * power.first * place;
    if (c == now - 1) std::fill(tail.sums, tail.sums + 4, 0.0);
    double term = measure;
    for (double& sum : tail.sums) {
      sum = sum * step.shrink + term;
      term *= far;
    }
    const double total = tail.sums[0];
    const double mean = total > 0 ? tail.sums[1] / total : 0;
    const double square = total > 0 ? tail.sums[2] / total : 0;
    const double variance = square - mean * mean;
    double z[2] = {0, 0}, share = 1;  // the two points' distances from the mean, the first's share
    if (variance > 1e-14 * origin * origin) {
      const double cube = tail.sums[3] / total - 3 * mean * square + 2 * mean * mean * mean;
      const double skew = cube / (2 * variance), half = std::sqrt(skew * skew + variance);
      z[0] = skew - half;
      z[1] = skew + half;
      share = z[1] / (z[1] - z[0]);
    }
    for (int k = 0; k < 2; k++) tail.place[k] = origin + mean + z[k];
    tail.weight[0] = total * share;
    tail.weight[1] = total * (1 - share);
  }
}

}  // namespace

extern "C" void adam_tails_float64(double* tails, const double* steps, const double* powers,
                                   int64_t base, int64_t now, int64_t memory) {
  extend(reinterpret_cast<Tail*>(tails), reinterpret_cast<const Step*>(steps),
         reinterpret_cast<const Power*>(powers), base, now, memory);
}

#define ADAM(T)                                                                                   \
  Adam<T>{w,     m,      v,      average, last,  width,                                           \
          reinterpret_cast<const Step*>(steps), reinterpret_cast<const Power*>(powers),           \
          reinterpret_cast<const Tail*>(tails), base, memory, early, beta1, beta2, eps, decay}

#define EXPORT(T, S)                                                                               \
  extern "C" void adam_catch_up_##S(                                                              \
      T* w, T* m, T* v, T* average, int32_t* last, int64_t width, const double* steps,            \
      const double* powers, const double* tails, int64_t base, int64_t memory, int64_t early,     \
      double beta1, double beta2, double eps, double decay, int64_t now, const int64_t* rows,     \
      int64_t count) {                                                                            \
    const Adam<T> adam = ADAM(T);                                                                 \
    over_rows<T>(rows, count, width, {w, m, v, average},                                          \
                 [=](int64_t, int64_t row, T* buffer) { adam.replay(row, now, buffer); });        \
  }                                                                                               \
  extern "C" void adam_step_##S(                                                                  \
      T* w, T* m, T* v, T* average, int32_t* last, int64_t width, const double* steps,            \
      const double* powers, const double* tails, int64_t base, int64_t memory, int64_t early,     \
      double beta1, double beta2, double eps, double decay, int64_t now, const int64_t* rows,     \
      int64_t count, const T* values, const int64_t* order, const int64_t* edges, double scale) { \
    const Adam<T> adam = ADAM(T);                                                                 \
    const Gradient<T> gradient{values, order, edges, scale, count};                               \
    over_rows<T>(rows, count, width, {w, m, v, average}, [=](int64_t u, int64_t row, T* buffer) { \
      adam.replay(row, now - 1, buffer + width);                                                  \
      gradient.sum(u, width, buffer);                                                             \
      adam.template move<true>(row, now, buffer);                                                 \
      last[row] = int32_t(now);                                                                   \
    });                                                                                           \
  }

EXPORT(float, float32)
EXPORT(double, float64)
