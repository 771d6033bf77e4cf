// Samples of a map where offsets point, one for each tap of each place, by bilinear interpolation; formulas in
// hasten/kernels/deform_conv.py. A map lies with the channels of a place side by side, so that a sample is a sum of up
// to four rows; neighbours outside of the map are 0 and are not read.
#pragma once

#include <cstdint>

namespace hasten {

struct DeformArgs {
  static constexpr int64_t kMostSide = 7;
  int64_t height = 0, width = 0, channels = 0, side = 0;  // of each map, and of the kernel
  const float* x = nullptr;        // (maps, height, width, channels)
  const float* offset = nullptr;   // (maps, 2 side^2, height, width): down, across of each tap
  const float* weight = nullptr;   // depthwise: (side^2, channels)
  float* out = nullptr;            // sample: (places, side^2, channels) from `first` on; depthwise: (places, channels)
  int64_t first = 0;
  const float* grad = nullptr;     // scatter: of the samples, (places, side^2, channels)
  float* x_grad = nullptr;         // (maps, height, width, channels), added to
  float* offset_grad = nullptr;    // (maps, 2 side^2, height, width), written

  int64_t taps() const { return side * side; }
};

struct DeformKernels {
  // Places [begin, end) over all maps.
  void (*sample)(const DeformArgs&, int64_t begin, int64_t end);
  void (*depthwise)(const DeformArgs&, int64_t begin, int64_t end);
  // Whole maps [begin, end): places of one map add to the same rows.
  void (*scatter)(const DeformArgs&, int64_t begin, int64_t end);
};

}  // namespace hasten

#if defined(HASTEN_ISA)
#include "simd.hpp"

namespace hasten {
namespace {

// The four neighbours of one sample: where each is among the rows of its map, -1 outside, and its share.
struct DeformCorners {
  int64_t row[4];
  float share[4];
  float down, across;  // from the upper left one

  HASTEN_INLINE_METHOD DeformCorners(const DeformArgs& d, int64_t map, int64_t place, int64_t tap) {
    const int64_t area = d.height * d.width, r = d.side / 2, y = place / d.width, x = place % d.width;
    const float* offset = d.offset + (map * 2 * d.taps() + 2 * tap) * area + place;
    const float py = float(y + tap / d.side - r) + offset[0], px = float(x + tap % d.side - r) + offset[area];
    for (int64_t& at : row) at = -1;
    for (float& part : share) part = 0;
    down = across = 0;
    // Whatever is no number or far away is outside, before it becomes an integer.
    if (!(py >= -1 && py < float(d.height) && px >= -1 && px < float(d.width))) return;
    const float top = __builtin_floorf(py), left = __builtin_floorf(px);
    down = py - top;
    across = px - left;
    const int64_t i = int64_t(top), j = int64_t(left);
    for (int64_t a = 0; a < 2; ++a)
      for (int64_t b = 0; b < 2; ++b) {
        if (i + a < 0 || i + a >= d.height || j + b < 0 || j + b >= d.width) continue;
        row[2 * a + b] = (i + a) * d.width + j + b;
        share[2 * a + b] = (a ? down : 1 - down) * (b ? across : 1 - across);
      }
  }
};

// What takes part in a sample: neighbours with a share above 0, at most four.
struct DeformRows {
  const float* from[4];
  float share[4];
  int count = 0;

  HASTEN_INLINE_METHOD void add(const float* x, int64_t channels, const DeformCorners& c) {
    count = 0;
    for (int k = 0; k < 4; ++k)
      if (c.row[k] >= 0 && c.share[k] != 0) {
        from[count] = x + c.row[k] * channels;
        share[count++] = c.share[k];
      }
  }

  HASTEN_INLINE_METHOD vec at(int64_t channel, int64_t left) const {
    vec total = zero();
    for (int k = 0; k < count; ++k) total = fma(load_part(from[k] + channel, left), broadcast(share[k]), total);
    return total;
  }
};

void deform_sample(const DeformArgs& d, int64_t begin, int64_t end) {
  const int64_t area = d.height * d.width, taps = d.taps();
  DeformRows rows;
  for (int64_t place = begin; place < end; ++place) {
    const int64_t map = place / area;
    const float* x = d.x + map * area * d.channels;
    for (int64_t tap = 0; tap < taps; ++tap) {
      rows.add(x, d.channels, DeformCorners(d, map, place % area, tap));
      float* out = d.out + ((place - d.first) * taps + tap) * d.channels;
      for (int64_t c = 0; c < d.channels; c += kLanes) store_part(out + c, rows.at(c, d.channels - c), d.channels - c);
    }
  }
}

void deform_depthwise(const DeformArgs& d, int64_t begin, int64_t end) {
  const int64_t area = d.height * d.width, taps = d.taps();
  DeformRows rows[DeformArgs::kMostSide * DeformArgs::kMostSide];
  for (int64_t place = begin; place < end; ++place) {
    const int64_t map = place / area;
    const float* x = d.x + map * area * d.channels;
    for (int64_t tap = 0; tap < taps; ++tap) rows[tap].add(x, d.channels, DeformCorners(d, map, place % area, tap));
    float* out = d.out + place * d.channels;
    for (int64_t c = 0; c < d.channels; c += kLanes) {
      vec total = zero();
      for (int64_t tap = 0; tap < taps; ++tap)
        total = fma(rows[tap].at(c, d.channels - c), load_part(d.weight + tap * d.channels + c, d.channels - c), total);
      store_part(out + c, total, d.channels - c);
    }
  }
}

void deform_scatter(const DeformArgs& d, int64_t begin, int64_t end) {
  const int64_t area = d.height * d.width, taps = d.taps();
  for (int64_t map = begin; map < end; ++map) {
    const float* x = d.x + map * area * d.channels;
    float* x_grad = d.x_grad + map * area * d.channels;
    for (int64_t place = 0; place < area; ++place)
      for (int64_t tap = 0; tap < taps; ++tap) {
        const DeformCorners corners(d, map, place, tap);
        const float* grad = d.grad + ((map * area + place) * taps + tap) * d.channels;
        float product[4] = {0, 0, 0, 0};  // of the gradient with each neighbour
        for (int k = 0; k < 4; ++k) {
          if (corners.row[k] < 0) continue;
          const float* from = x + corners.row[k] * d.channels;
          float* to = x_grad + corners.row[k] * d.channels;
          const vec share = broadcast(corners.share[k]);
          vec total = zero();
          for (int64_t c = 0; c < d.channels; c += kLanes) {
            const int64_t left = d.channels - c;
            const vec g = load_part(grad + c, left);
            total = fma(g, load_part(from + c, left), total);
            store_part(to + c, fma(g, share, load_part(to + c, left)), left);
          }
          product[k] = sum(total);
        }
        float* offset_grad = d.offset_grad + (map * 2 * taps + 2 * tap) * area + place;
        const float down = corners.down, across = corners.across;
        offset_grad[0] = (1 - across) * (product[2] - product[0]) + across * (product[3] - product[1]);
        offset_grad[area] = (1 - down) * (product[1] - product[0]) + down * (product[3] - product[2]);
      }
  }
}

constexpr DeformKernels deform_kernels = {&deform_sample, &deform_depthwise, &deform_scatter};

}  // namespace
}  // namespace hasten
#endif
