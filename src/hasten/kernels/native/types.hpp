// What the instruction-set-independent part (module.cpp) and the kernels (isa.cpp, once per instruction
// set) tell each other. Pointers are to memory that Python's tensors own.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace hasten {

// Sizes that hasten/kernels/*.py have too: `constants()` says them, and a test compares.
constexpr int kLanes = 16;  // numbers of a vector, whatever the instruction set
constexpr int64_t kBlock = 32;  // tokens of a block of the cache, and channels of values that share a scale
constexpr int64_t kGroup = 32;  // columns of x that share a scale in int8; a weight's groups are multiples
constexpr int64_t kTile = 16;   // rows of a weight that stand side by side in a tile
constexpr int64_t kMostTreeRows = 65;  // of one sequence in a step: bits of a mask, and the root that all rows see
constexpr int kTileQueries = 96;  // of one kv head, whose rows share each read of keys and values
constexpr int kTileRows = 32;  // at most, of one sequence
constexpr int kFewRows = 16;  // of one sequence one after another: fewer are attended from one by one
constexpr int64_t kMostExperts = 1 << 16;  // of a layer
constexpr int64_t kMostTreeChannels = 256;  // of a head, where rows of a step form a tree

// Formats of weights; those above 100 are ggml's, in blocks (block_formats.hpp), by its numbers and 100.
enum Format : int {
  kFp32 = 32, kFp16 = 17, kBf16 = 16, kInt8 = 8, kInt4 = 4,
  kQ5_0 = 106, kQ5_1 = 107, kQ2K = 110, kQ3K = 111, kQ4K = 112, kQ5K = 113, kQ6K = 114,
  kIq4Nl = 120, kIq4Xs = 123, kMxfp4 = 139,
  kInt4Centred = 5,  // int4 without mins: not known outside, where a matrix without mins says it
  kTiled = 1000      // and more than that: a format's number, of rows in tiles
};
constexpr bool in_blocks(int format) { return format > 100 && format < kTiled; }
constexpr bool takes_tiles(int format) {
  return format == kInt8 || format == kInt4 || format == kQ5_0 || format == kQ4K || format == kQ5K || format == kQ6K;
}

// A weight matrix (out, in); see hasten/kernels/packed_linear.py for the formats.
struct Matrix {
  int bits = 0;
  int64_t out = 0, in = 0, group = kGroup;
  const void* codes = nullptr;
  const uint16_t* scales = nullptr;  // (out, in / group), IEEE half
  const uint16_t* mins = nullptr;    // likewise, int4 only; without any a code stands for itself less 8
  const float* bias = nullptr;
  bool codes_in = false;  // rows of x are rounded to int8 first, and multiplied as whole numbers
  bool tiled = false;     // kTile rows stand side by side (tiles.hpp)

  bool takes_codes() const { return codes_in && group == kGroup && (bits == kInt8 || bits == kInt4 || in_blocks(bits)); }
};

// Rows of x as int8 codes in groups of 32, padded with zeros to whole blocks of 512. Of four groups the first halves
// stand side by side, then the second halves, as the formats of weights have them (formats.hpp).
struct Codes {
  int8_t* codes = nullptr;       // (rows, width)
  float* scales = nullptr;       // (rows, width / 32)
  float* sums = nullptr;         // (rows, 3, width / 32): scale times the sum of codes, of a group and of its halves
  int32_t* offsets = nullptr;    // likewise: what products of codes with 128 added have too much, negative
  int64_t width = 0;             // codes of a row, padding included

  static int64_t padded(int64_t in) { return (in + 511) / 512 * 512; }
  // The same rows from `row` on.
  Codes from(int64_t row) const {
    const int64_t groups = width / kGroup;
    Codes c = *this;
    c.codes += row * width;
    c.scales += row * groups;
    c.sums += row * 3 * groups;
    c.offsets += row * 3 * groups;
    return c;
  }
};

// What divides a row by its root mean square, or by its standard deviation about its mean. Without weights: nothing.
struct Norm {
  const float *weight = nullptr, *bias = nullptr;
  float epsilon = 1e-5f;
  bool centred = false;

  explicit operator bool() const { return weight != nullptr; }
};

enum Activation : int { kSilu = 0, kGelu = 1, kGeluTanh = 2 };

// Matrices of one kind, one of each of a layer's experts: each stands as far behind the one before it.
struct MatrixStack {
  Matrix first;
  int64_t count = 0, codes_step = 0;     // matrices; bytes
  int64_t scales_step = 0, bias_step = 0;  // numbers, of scales and mins alike

  Matrix of(int64_t expert) const {
    Matrix m = first;
    m.codes = static_cast<const char*>(m.codes) + expert * codes_step;
    if (m.scales) m.scales += expert * scales_step;
    if (m.mins) m.mins += expert * scales_step;
    if (m.bias) m.bias += expert * bias_step;
    return m;
  }
};

// A mixture of experts, of which a token goes to the `top` that the router's logits are largest for.
struct Mixture {
  Matrix router;  // (experts, hidden)
  MatrixStack gate, up, down;
  int64_t top = 0;
  bool softmax_first = true;  // weights are of a softmax over all experts, not over the chosen ones
  bool normed = true;         // and then divided by their sum
  // Where limit > 0 experts are (up + 1) gate sigmoid(alpha gate), the gate at most `limit`, up within it both ways.
  float alpha = 1, limit = 0;
  Matrix beside;  // (1, hidden), or none: its sigmoid weighs the layer's plain MLP, which joins the experts

  explicit operator bool() const { return router.codes != nullptr; }
  int64_t experts() const { return router.out; }
  int64_t inner() const { return gate.first.out; }
};

// An expert and how much it is wanted.
struct Ranked {
  float score;
  int32_t expert;
};

// Where a step keeps what it knows of a mixture's rows: `pairs` are rows times `top`, sorted by expert.
struct Routes {
  float *logits = nullptr, *beside = nullptr;   // (rows, experts); (rows)
  float* weights = nullptr;                     // (rows, top)
  int32_t *chosen = nullptr, *place = nullptr;  // (rows, top) both: experts, and where the pair stands
  int32_t* row = nullptr;                       // (pairs)
  // Of experts that some row goes to, rising: which, and where their pairs begin; the end of the last one's too.
  int32_t *used = nullptr, *begin = nullptr;  // (experts), (experts + 1)
  int32_t* count = nullptr;                   // (1 + experts): how many are used, and room to count
  Ranked* ranked = nullptr;                   // per thread (experts)
  float* rows = nullptr;                      // (pairs, hidden): what experts read, then what they make
  float *inner = nullptr, *up = nullptr;      // (pairs, inner)
  Codes row_codes, inner_codes;
  Codes beside_codes;  // within the MLP beside the experts
};

// The `top` experts of one row and their weights, ties falling as in torch's topk. `room`: one for each expert.
void choose_experts(const Mixture& m, const float* logits, Ranked* room, int32_t* chosen, float* weights);
// Sorts the pairs of `rows` rows by expert.
void sort_by_expert(const Mixture& m, int64_t rows, const Routes& r);

// One decoder layer: attention, then a gated MLP or experts, each with a norm before it, one after it, or both.
struct Layer {
  Norm attention_norm, attention_after, feed_forward_norm, feed_forward_after;
  // Of queries and keys, with weights for every channel of every head. Each head is normed by itself, or with
  // `norm_together` all of a token's as one.
  Norm query_norm, key_norm;
  bool norm_together = false;
  Matrix query, key, value, output;
  Matrix gate, up, down;  // none, where there are experts and nothing beside them
  Mixture mixture;        // none without a router
  const float* sinks = nullptr;  // of each head a score that takes its share and has no value, or null
  int64_t window = 0;            // newest tokens that a token attends to, itself included; 0: all
  int rotary = 0;                // which of the model's tables; negative: no rotary positions
  Activation activation = kSilu;
  bool parallel = false;  // the MLP reads what attention reads, not what it adds to
};

// Cosines and sines of rotary positions, (positions, width) each; channels of a head from `width` on are not turned.
struct Rotary {
  const float *cosines = nullptr, *sines = nullptr;
  int64_t width = 0;
};

// Where a layer's keys and values are; layouts in hasten/kernels/kv_cache.py. Positions are stored in blocks;
// with a window the blocks behind the sinks form a ring.
struct LayerCache {
  void *keys = nullptr, *values = nullptr;
  uint16_t *key_scales = nullptr, *key_mins = nullptr, *value_scales = nullptr, *value_mins = nullptr;
  float *recent_keys = nullptr, *recent_values = nullptr;
  float* pooled = nullptr;  // mean keys of complete blocks (batch, kv heads, blocks, head_dim), or null
  int64_t blocks = 0;
  int64_t window = 0;  // 0: unlimited
  int64_t own_window = 0;  // the layer's own (Layer::window), which hides sinks too
  int64_t sinks = 0, sink_blocks = 0, ring_blocks = 0;

  int64_t slot(int64_t b) const {
    return !ring_blocks || b < sink_blocks ? b : sink_blocks + (b - sink_blocks) % ring_blocks;
  }
};

// What all layers' caches share.
struct Cache {
  int bits = kFp32;
  int64_t batch = 1, block = kBlock;
  int64_t recent = 2 * kBlock;  // a sequence's newest tokens, unquantized, at position % recent
  int64_t top = 0, top_local = 0;  // with `pooled`: blocks chosen by score, and newest blocks always read
  // Where all sequences share one pool of blocks: block b of sequence s stands at place tables[s * table_blocks + b].
  const int32_t* tables = nullptr;
  int64_t table_blocks = 0;
  std::vector<LayerCache> layers;
};

struct Model {
  int64_t hidden = 0, intermediate = 0, heads = 0, kv_heads = 0, head_dim = 0, vocabulary = 0;
  float scaling = 0;          // of queries
  float embedding_scale = 1;  // of embedded tokens
  float residual_scale = 1;   // of what a layer adds
  float logit_scale = 1;
  // Scores of attention, and logits, are bent to stay between minus this and this; 0: they are not.
  float score_cap = 0, logit_cap = 0;
  Norm final_norm;
  Matrix embedding, head;
  std::vector<Rotary> rotaries;
  int64_t positions = 0;
  int64_t beside = 0;  // channels within the MLPs beside experts
  std::vector<Layer> layers;
};

// Scratch of one step, reused: 64-byte aligned so that no vector straddles two cache lines.
struct Scratch {
  float *state = nullptr, *normed = nullptr, *query = nullptr, *key = nullptr, *value = nullptr;
  float *attended = nullptr, *inner = nullptr, *up = nullptr;
  float* added = nullptr;     // (rows, hidden): what a layer adds, where `normed` is still read
  float* partial = nullptr;   // (single rows, heads, chunks, head_dim + 16): attention over a part of the keys
  int32_t* chosen = nullptr;  // (rows, kv heads, chosen_stride): the blocks to read, where they are chosen
  float* tile = nullptr;      // per thread, where rows are attended from in tiles
  int64_t tile_stride = 0;
  std::atomic<int>* taken = nullptr;  // of each layer: tiles that threads have taken to do
  float* scores = nullptr;    // per thread, where blocks are chosen
  int64_t chunks = 0, chosen_stride = 0, scores_stride = 0;
  Codes hidden_codes, attended_codes, inner_codes;
  Routes routes;
};

// `count` rows of one sequence from `row` on, at positions one after another from `pos` on. They belong to a run of such
// rows from run_row, run_pos on. A run that stands apart is longer than the cache has room to write before the rows have
// read: its keys and values are read from the step's own rows, and enter the cache last.
struct Tile {
  int row = 0, count = 0, run_row = 0;
  bool apart = false;
  int64_t seq = 0, pos = 0, run_pos = 0;
};

// `rows` tokens, each of sequence seq[t] at place pos[t] of the cache; a sequence's rows stand in order. Its rotary
// position is turn[t], larger where tokens have left the cache. Sequence s
// has its first committed[s] positions in the cache, and of those its first quantized[s] blocks as codes;
// the step turns every other complete block of them into codes. Writes keys and values into the cache and the logits
// of rows answered[0..answers) into (answers, vocabulary).
struct Tokens {
  int rows = 0, answers = 0;
  const int64_t* answered = nullptr;
  const int64_t *ids = nullptr, *seq = nullptr, *pos = nullptr, *turn = nullptr;
  const int64_t *committed = nullptr, *quantized = nullptr;  // (batch)
  // Where rows of a step form a tree: bit i of a row's mask says whether it sees its sequence's row i + 1; all see the
  // first one, the root. Null: a chain.
  const uint64_t* masks = nullptr;
  // How rows are attended from: one by one, or in tiles; and the runs that stand apart, each as one tile.
  std::vector<int> single;
  std::vector<Tile> tiles, apart;
  std::vector<char> stands_apart;  // of each row; empty where none does
  float* hidden = nullptr;  // if not null: normed last states of the rows that are answered
};

class Barrier;

// The share [begin, end) of `count` items that thread `rank` of `threads` takes, in multiples of `unit`.
static inline void share(int64_t count, int64_t unit, int rank, int threads, int64_t& begin, int64_t& end) {
  const int64_t units = (count + unit - 1) / unit;
  begin = units * rank / threads * unit;
  end = units * (rank + 1) / threads * unit;
  if (begin > count) begin = count;
  if (end > count) end = count;
}

}  // namespace hasten
