// Which experts a row goes to.
#include <algorithm>
#include <cmath>

#include "types.hpp"

namespace hasten {

// torch's topk on a processor (ATen/native/TopKImpl.h) sorts pairs of a value and its place by value alone, so that
// which of equal ones it keeps is what the library's algorithms leave first. The same algorithms leave the same here.
void choose_experts(const Mixture& m, const float* logits, Ranked* room, int32_t* chosen, float* weights) {
  const int64_t n = m.experts(), top = m.top;
  for (int64_t e = 0; e < n; ++e) room[e] = {logits[e], int32_t(e)};
  const auto largest = [](const Ranked* all, int64_t count) {
    float most = all[0].score;
    for (int64_t e = 1; e < count; ++e) most = all[e].score > most || std::isnan(all[e].score) ? all[e].score : most;
    return most;
  };
  // The exponentials of `count` scores divided by their sum.
  const auto softmax = [&](Ranked* all, int64_t count) {
    const float most = largest(all, count);
    float total = 0;
    for (int64_t e = 0; e < count; ++e) total += all[e].score = std::exp(all[e].score - most);
    for (int64_t e = 0; e < count; ++e) all[e].score /= total;
  };
  if (m.softmax_first) softmax(room, n);
  const auto before = [](const Ranked& a, const Ranked& b) {
    return (std::isnan(a.score) && !std::isnan(b.score)) || a.score > b.score;
  };
  if (top * 64 <= n) {
    std::partial_sort(room, room + top, room + n, before);
  } else {
    std::nth_element(room, room + top - 1, room + n, before);
    std::sort(room, room + top - 1, before);
  }
  if (!m.softmax_first) {
    softmax(room, top);
  } else if (m.normed) {
    float total = 0;
    for (int64_t k = 0; k < top; ++k) total += room[k].score;
    for (int64_t k = 0; k < top; ++k) room[k].score /= total;
  }
  for (int64_t k = 0; k < top; ++k) {
    chosen[k] = room[k].expert;
    weights[k] = room[k].score;
  }
}

void sort_by_expert(const Mixture& m, int64_t rows, const Routes& r) {
  const int64_t pairs = rows * m.top, n = m.experts();
  int32_t *used = r.count, *next = r.count + 1;
  std::fill_n(next, n, 0);
  for (int64_t i = 0; i < pairs; ++i) ++next[r.chosen[i]];
  *used = 0;
  int32_t at = 0;
  for (int64_t e = 0; e < n; ++e) {
    const int32_t here = next[e];
    if (here) {
      r.used[*used] = int32_t(e);
      r.begin[(*used)++] = at;
    }
    next[e] = at;
    at += here;
  }
  r.begin[*used] = at;
  for (int64_t i = 0; i < pairs; ++i) {
    r.place[i] = next[r.chosen[i]]++;
    r.row[r.place[i]] = int32_t(i / m.top);
  }
}

}  // namespace hasten
