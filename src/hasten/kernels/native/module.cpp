// The Python module: chooses the kernels for this machine, and holds a decoder's pointers between steps.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#if defined(HASTEN_DOTPROD) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "bindings.hpp"
#include "huge_pages.hpp"
#include "team.hpp"

namespace hasten {

// Those that this build has: CMakeLists.txt, HASTEN_INSTRUCTION_SETS.
extern const Kernels kernels_generic, kernels_avx2, kernels_avx512, kernels_avx512vnni, kernels_dotprod;

namespace {

#if defined(HASTEN_DOTPROD)
// Arm's dot products of bytes: every Apple processor has them, Linux says it, and nobody is asked elsewhere.
bool has_dot_products() {
#if defined(__linux__)
  constexpr unsigned long kBit = 1ul << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kBit;
#elif defined(__APPLE__)
  return true;
#else
  return false;
#endif
}
#endif

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> found;
#if defined(HASTEN_AVX512) || defined(HASTEN_AVX512VNNI)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
#if defined(HASTEN_AVX512VNNI)
  if (avx512 && __builtin_cpu_supports("avx512vnni")) found.push_back(&kernels_avx512vnni);
#endif
#if defined(HASTEN_AVX512)
  if (avx512) found.push_back(&kernels_avx512);
#endif
#if defined(HASTEN_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    found.push_back(&kernels_avx2);
#endif
#if defined(HASTEN_DOTPROD)
  if (has_dot_products()) found.push_back(&kernels_dotprod);
#endif
  found.push_back(&kernels_generic);
  return found;
}

const Kernels* chosen = available().front();

void use_isa(const std::string& name) {
  for (const Kernels* k : available())
    if (name == k->name) {
      chosen = k;
      return;
    }
  throw std::invalid_argument("this machine does not run " + name);
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels* k : available()) names.push_back(k->name);
  return names;
}

Matrix make_matrix(int bits, int64_t out, int64_t in, int64_t group, uintptr_t codes, uintptr_t scales,
                   uintptr_t mins, uintptr_t bias, bool codes_in, bool tiled) {
  if (tiled && (!takes_tiles(bits) || group != kGroup || out % kTile))
    throw std::invalid_argument("a weight that stands in no tiles");
  Matrix m;
  m.bits = bits;
  m.out = out;
  m.in = in;
  m.group = group;
  m.codes = pointer<const void>(codes);
  m.scales = pointer<const uint16_t>(scales);
  m.mins = pointer<const uint16_t>(mins);
  m.bias = pointer<const float>(bias);
  m.codes_in = codes_in;
  m.tiled = tiled;
  return m;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Room for the codes of `rows` rows of `in` values.
class CodesBuffer {
 public:
  Codes reserve(int64_t rows, int64_t in) {
    Codes c;
    c.width = Codes::padded(in);
    const int64_t scales = c.width / kGroup;
    const size_t bytes = size_t(rows * (c.width + 7 * scales * int64_t(sizeof(float))));
    if (bytes > size_ || in != in_) {
      memory_.reset(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
      if (!memory_) throw std::bad_alloc();
      ask_huge_pages(memory_.get(), bytes, false);
      std::memset(memory_.get(), 0, bytes);  // the padding stays zero
      size_ = bytes;
      in_ = in;
      rows_ = rows;
    }
    c.codes = static_cast<int8_t*>(memory_.get());
    c.scales = reinterpret_cast<float*>(c.codes + rows_ * c.width);
    c.sums = c.scales + rows_ * scales;
    c.offsets = reinterpret_cast<int32_t*>(c.sums + 3 * rows_ * scales);
    return c;
  }

 private:
  std::unique_ptr<void, Free> memory_;
  size_t size_ = 0;
  int64_t in_ = 0, rows_ = 0;
};

void linear(const Matrix& m, uintptr_t x, int rows, uintptr_t y, int threads) {
  CodesBuffer buffer;
  const Codes codes = m.takes_codes() ? buffer.reserve(rows, m.in) : Codes();
  together_with_barrier(threads, [&](int rank, int size, Barrier& all) {
    int64_t n0, n1;
    if (m.takes_codes()) {
      share(rows, 1, rank, size, n0, n1);
      chosen->encode_rows(pointer<const float>(x), codes, m.in, n0, n1);
      all.wait();
    }
    share(m.out, kTile, rank, size, n0, n1);
    if (m.takes_codes())
      chosen->multiply_codes(m, codes, rows, pointer<float>(y), m.out, n0, n1);
    else
      chosen->multiply(m, pointer<const float>(x), m.in, rows, pointer<float>(y), m.out, n0, n1);
  });
}

void dequantize(const Matrix& m, uintptr_t y, int threads) {
  together(threads, [&](int rank, int size) {
    int64_t n0, n1;
    share(m.out, 8, rank, size, n0, n1);
    chosen->unpack(m, pointer<float>(y) + n0 * m.in, n0, n1);
  });
}

void dequantize_rows(const Matrix& m, uintptr_t ids, int64_t count, uintptr_t y) {
  const int64_t* rows = pointer<const int64_t>(ids);
  for (int64_t i = 0; i < count; ++i) chosen->unpack(m, pointer<float>(y) + i * m.in, rows[i], rows[i] + 1);
}

// What threads do in a second, the best of several attempts: body(rank, size) does what one of `size` does, and tells
// how much that was.
template <class Body>
double best_rate(int threads, int attempts, Body body) {
  double best = 0;
  for (int attempt = 0; attempt < attempts; ++attempt) {
    std::atomic<double> done{0};
    const auto begun = std::chrono::steady_clock::now();
    together(threads, [&](int rank, int size) { done.fetch_add(body(rank, size)); });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begun;
    best = std::max(best, done / seconds.count());
  }
  return best;
}

constexpr int64_t kRounds = 4'000'000;

// Looked at, so that no compiler leaves out what it was made of.
double kept(double amount, float made) { return made == made ? amount : 0; }

// Vector instructions a second: multiply-adds of 16 floats.
double vector_rate(int threads) {
  return best_rate(threads, 5, [](int, int) { return kept(double(kRounds) * kChains, chosen->multiply_adds(kRounds)); });
}

// Codes a second that are multiplied by codes, and added up.
double code_rate(int threads) {
  return best_rate(threads, 5, [](int, int) { return kept(64.0 * kRounds * kChains, chosen->code_products(kRounds)); });
}

// Bytes of memory a second that are read.
double read_rate(uintptr_t memory, int64_t bytes, int threads) {
  return best_rate(threads, 3, [&](int rank, int size) {
    int64_t begin, end;
    share(bytes, 4096, rank, size, begin, end);
    return kept(double(end - begin), chosen->read_all(pointer<const char>(memory) + begin, end - begin));
  });
}

Norm make_norm(uintptr_t weight, uintptr_t bias, float epsilon, bool centred) {
  return {pointer<const float>(weight), pointer<const float>(bias), epsilon, centred};
}

// Pointers that a decoder is given are to tensors that outlive it, of the sizes that its own sizes say.
class Decoder {
 public:
  Decoder(int64_t hidden, int64_t intermediate, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t vocabulary,
          int64_t positions, float scaling) {
    for (const int64_t size : {hidden, heads, kv_heads, head_dim, vocabulary, positions})
      if (size < 1 || size > INT32_MAX) throw std::invalid_argument("sizes that no decoder has");
    // No layer without experts has no MLP.
    if (intermediate < 0 || intermediate > INT32_MAX || heads % kv_heads)
      throw std::invalid_argument("sizes that no decoder has");
    model_.hidden = hidden;
    model_.intermediate = intermediate;
    model_.heads = heads;
    model_.kv_heads = kv_heads;
    model_.head_dim = head_dim;
    model_.vocabulary = vocabulary;
    model_.positions = positions;
    model_.scaling = scaling;
  }

  void set_ends(const Matrix& embedding, const Matrix& head, const Norm& final_norm) {
    if (embedding.in != model_.hidden || embedding.out < model_.vocabulary) throw std::invalid_argument("an embedding of another size");
    if (head.in != model_.hidden || head.out != model_.vocabulary) throw std::invalid_argument("a head of another size");
    model_.embedding = embedding;
    model_.head = head;
    model_.final_norm = final_norm;
  }

  void set_scales(float embedding, float residual, float logit, float score_cap, float logit_cap) {
    model_.embedding_scale = embedding;
    model_.residual_scale = residual;
    model_.logit_scale = logit;
    model_.score_cap = score_cap;
    model_.logit_cap = logit_cap;
  }

  // A table of rotary positions, (positions, width); layers name it by its number, counted from 0.
  void add_rotary(uintptr_t cosines, uintptr_t sines, int64_t width) {
    if (width < 0 || width % 2 || width > model_.head_dim) throw std::invalid_argument("rotary positions of another width than a head's");
    model_.rotaries.push_back({pointer<const float>(cosines), pointer<const float>(sines), width});
  }

  void add_layer(const Layer& l) {
    const int64_t q = model_.heads * model_.head_dim, kv = model_.kv_heads * model_.head_dim;
    const auto is = [](const Matrix& m, int64_t out, int64_t in) { return m.codes && m.out == out && m.in == in; };
    const auto all = [&](const MatrixStack& stack, int64_t out, int64_t in) {
      return is(stack.first, out, in) && stack.count == l.mixture.experts() && stack.codes_step >= 0 &&
             stack.scales_step >= 0 && stack.bias_step >= 0;
    };
    const int64_t inner = l.mixture ? l.gate.out : model_.intermediate;
    if (!is(l.query, q, model_.hidden) || !is(l.key, kv, model_.hidden) || !is(l.value, kv, model_.hidden) ||
        !is(l.output, model_.hidden, q))
      throw std::invalid_argument("a layer's weight is missing or of another size");
    if ((!l.mixture || l.gate.codes) && (!is(l.gate, inner, model_.hidden) || !is(l.up, inner, model_.hidden) ||
                                         !is(l.down, model_.hidden, inner) || inner % kGroup))
      throw std::invalid_argument("a layer's weight is missing or of another size");
    if (l.mixture) {
      const Mixture& x = l.mixture;
      if (x.router.in != model_.hidden || x.experts() < 1 || x.experts() > kMostExperts || x.top < 1 || x.top > x.experts())
        throw std::invalid_argument("a router of another size, or of more experts than there are");
      if (x.inner() < 1 || x.inner() % kGroup || !all(x.gate, x.inner(), model_.hidden) ||
          !all(x.up, x.inner(), model_.hidden) || !all(x.down, model_.hidden, x.inner()))
        throw std::invalid_argument("experts whose weights are missing or of another size");
      if (x.beside.codes ? !is(x.beside, 1, model_.hidden) || !l.gate.codes : l.gate.codes != nullptr)
        throw std::invalid_argument("an MLP beside experts goes with what weighs it");
      for (const Layer& other : model_.layers) {
        if (!other.mixture) continue;
        if (other.mixture.inner() != x.inner() || other.gate.out != l.gate.out)
          throw std::invalid_argument("layers whose experts are of different sizes");
      }
      if (l.gate.codes) model_.beside = l.gate.out;
    }
    if (l.rotary >= int64_t(model_.rotaries.size())) throw std::invalid_argument("a layer names rotary positions that are not there");
    if (l.window < 0) throw std::invalid_argument("a window of fewer than no tokens");
    model_.layers.push_back(l);
  }

  // Each layer: eight tensors of the cache, then its mean keys, blocks, window, sinks, sink blocks, ring blocks.
  // `table_blocks`: entries of a sequence's table where all sequences share a pool of blocks, else 0.
  void set_cache(int bits, int64_t batch, int64_t block, int64_t recent, int64_t top, int64_t top_local,
                 const std::vector<std::vector<uintptr_t>>& layers, int64_t table_blocks) {
    if (block != kBlock) throw std::invalid_argument("a cache in other blocks than compiled");
    cache_ = Cache();
    cache_.bits = bits;
    cache_.batch = batch;
    cache_.block = block;
    cache_.recent = recent;
    cache_.top = top;
    cache_.top_local = top_local;
    cache_.table_blocks = table_blocks;
    for (const auto& p : layers) {
      if (p.size() != 14) throw std::invalid_argument("a layer's cache has fourteen parts");
      LayerCache l;
      l.keys = pointer<void>(p[0]);
      l.values = pointer<void>(p[1]);
      l.key_scales = pointer<uint16_t>(p[2]);
      l.key_mins = pointer<uint16_t>(p[3]);
      l.value_scales = pointer<uint16_t>(p[4]);
      l.value_mins = pointer<uint16_t>(p[5]);
      l.recent_keys = pointer<float>(p[6]);
      l.recent_values = pointer<float>(p[7]);
      l.pooled = pointer<float>(p[8]);
      l.blocks = int64_t(p[9]);
      l.window = int64_t(p[10]);
      l.sinks = int64_t(p[11]);
      l.sink_blocks = int64_t(p[12]);
      l.ring_blocks = int64_t(p[13]);
      cache_.layers.push_back(l);
    }
    if (cache_.layers.size() != model_.layers.size()) throw std::invalid_argument("one cache for each layer");
    for (size_t i = 0; i < cache_.layers.size(); ++i) cache_.layers[i].own_window = model_.layers[i].window;
    for (const LayerCache& l : cache_.layers)
      if (table_blocks && (l.pooled || l.window || l.ring_blocks)) throw std::invalid_argument("a pool's blocks keep everything");
    for (const LayerCache& l : cache_.layers)
      if (top && l.own_window) throw std::invalid_argument("blocks are chosen where a layer has no window of its own");
    if (top > 0 && top_local < 2) throw std::invalid_argument("the two newest blocks are always read");
    capacity_ = 0;
  }

  // Pointers to int64: ids, seq, pos, turn (rows each), answered (answers), committed, quantized (batch each). Checked
  // here, once a step, so that no kernel reads or writes outside a tensor; but the entries of `tables`, int32
  // (batch, table_blocks), are the caller's to check.
  void step(uintptr_t ids, uintptr_t seq, uintptr_t pos, uintptr_t turn, int rows, uintptr_t answered, int answers,
            uintptr_t committed, uintptr_t quantized, uintptr_t logits, int threads, uintptr_t masks,
            uintptr_t hidden, uintptr_t tables) {
    if ((tables != 0) != (cache_.table_blocks > 0)) throw std::invalid_argument("a pool of blocks goes with tables");
    cache_.tables = pointer<const int32_t>(tables);
    Tokens in;
    in.rows = rows;
    in.answered = pointer<const int64_t>(answered);
    in.answers = answers;
    in.ids = pointer<const int64_t>(ids);
    in.seq = pointer<const int64_t>(seq);
    in.pos = pointer<const int64_t>(pos);
    in.turn = pointer<const int64_t>(turn);
    in.committed = pointer<const int64_t>(committed);
    in.quantized = pointer<const int64_t>(quantized);
    in.masks = pointer<const uint64_t>(masks);
    in.hidden = pointer<float>(hidden);
    plan(in, threads);
    check(in);
    const Scratch scratch = reserve(in, threads);
    together_with_barrier(threads, [&](int rank, int size, Barrier& all) {
      chosen->step(model_, cache_, in, scratch, pointer<float>(logits), rank, size, all);
    });
  }

 private:
  // Tokens of one sequence that a step writes into the cache before its rows have read.
  int64_t most_new() const {
    int64_t most = INT64_MAX;
    for (const LayerCache& l : cache_.layers)
      if (l.ring_blocks) most = cache_.block;
    return cache_.bits < kBf16 ? std::min(most, cache_.recent - cache_.block) : most;
  }

  // Which rows are attended from one by one and which in tiles.
  void plan(Tokens& in, int threads) const {
    const int64_t shared = model_.heads / model_.kv_heads;
    const bool alone = in.masks || cache_.top || shared > kTileQueries;
    for (int begin = 0, end; begin < in.rows; begin = end) {
      for (end = begin + 1; end < in.rows && in.seq[end] == in.seq[begin] && in.pos[end] == in.pos[end - 1] + 1;) ++end;
      const int count = end - begin;
      if (alone || count < kFewRows) {
        for (int t = begin; t < end; ++t) in.single.push_back(t);
        continue;
      }
      Tile run{begin, count, begin, count > most_new(), in.seq[begin], in.pos[begin], in.pos[begin]};
      if (run.apart) {
        in.apart.push_back(run);
        in.stands_apart.resize(size_t(in.rows));
        std::fill_n(in.stands_apart.begin() + begin, count, char(1));
      }
      // Small enough that no thread waits long for the last one.
      const int64_t fair = (count * model_.kv_heads + 3 * threads - 1) / (3 * threads);
      const int most = int(std::min<int64_t>({kTileRows, kTileQueries / shared, std::max<int64_t>(fair, 8)}));
      for (int from = 0; from < count; from += most) {
        run.row = begin + from;
        run.pos = run.run_pos + from;
        run.count = std::min(most, count - from);
        in.tiles.push_back(run);
      }
    }
  }

  void check(const Tokens& in) const {
    int64_t limit = model_.positions;
    bool ring = false;
    for (const LayerCache& l : cache_.layers) {
      ring = ring || l.ring_blocks;
      if (!l.ring_blocks) limit = std::min(limit, (cache_.tables ? cache_.table_blocks : l.blocks) * cache_.block);
    }
    for (int i = 0; i < in.answers; ++i)
      if (in.answered[i] < 0 || in.answered[i] >= in.rows) throw std::out_of_range("an answer to a row that is not there");
    if (in.answers > in.rows) throw std::out_of_range("more answers than rows");
    const bool codes = cache_.bits < kBf16;
    for (int64_t s = 0; s < cache_.batch; ++s) {
      const int64_t most = ring ? model_.positions : limit;
      const int64_t length = in.committed[s], blocks = in.quantized[s];
      if (length < 0 || length > most || blocks < 0 || blocks > length / cache_.block ||
          (codes && length - blocks * cache_.block > cache_.recent))
        throw std::out_of_range("a length outside the cache");
    }
    for (const Tile& run : in.apart)
      if (run.seq >= 0 && run.seq < cache_.batch && run.run_pos != in.committed[run.seq])
        throw std::out_of_range("a long piece of a text begins behind what is committed of it");
    // Other rows of a step beyond the ring's or the recent part's slack would overwrite what earlier rows read.
    const int64_t slack = cache_.top ? std::min(most_new(), cache_.block) : most_new();
    for (int t = 0; t < in.rows; ++t) {
      if (in.ids[t] < 0 || in.ids[t] >= model_.vocabulary) throw std::out_of_range("a token id outside the vocabulary");
      if (in.seq[t] < 0 || in.seq[t] >= cache_.batch) throw std::out_of_range("a sequence outside the batch");
      const int64_t from = in.committed[in.seq[t]];
      if (in.pos[t] < from || in.pos[t] >= limit) throw std::out_of_range("a position outside the cache");
      if ((!in.masks && in.turn[t] < in.pos[t]) || in.turn[t] < 0 || in.turn[t] >= model_.positions)
        throw std::out_of_range("a position outside the model's");
      if (in.masks && (model_.head_dim > kMostTreeChannels || cache_.top || ring))
        throw std::out_of_range("a tree needs a cache that keeps everything");
      const int64_t place = in.pos[t] - from;
      if (in.masks && place >= kMostTreeRows) throw std::out_of_range("too many rows of a tree in a step");
      if (in.masks && place && !(in.masks[t] >> (place - 1) & 1)) throw std::out_of_range("a row of a tree sees itself");
      if (place >= slack && (in.stands_apart.empty() || !in.stands_apart[size_t(t)]))
        throw std::out_of_range("too many tokens of one sequence in a step");
    }
  }

  Scratch reserve(const Tokens& in, int threads) {
    const Model& m = model_;
    const int rows = in.rows;
    int64_t reach = 0, blocks = 0;
    for (int t : in.single) reach = std::max(reach, in.pos[t] / cache_.block + 1);
    int64_t visible = 0;
    for (const LayerCache& l : cache_.layers) {
      // A window may touch two blocks more than it is long.
      int64_t most = l.window ? (l.window + l.sinks) / cache_.block + 4 : reach;
      if (l.own_window) most = std::min(most, (l.own_window + l.sinks) / cache_.block + 4);
      visible = std::max(visible, std::min(most, reach));
      blocks = std::max(blocks, l.blocks);
    }
    // In steps, so that a growing text does not ask for memory at every token.
    const int64_t chunks = ((visible + 3) / 4 + 2 + 15) / 16 * 16;
    const int64_t chosen_stride = cache_.top ? 2 + 1 + cache_.top + cache_.top_local + 2 : 0;
    const int64_t scores_stride = cache_.top ? round_up(blocks + 16) + round_up(m.head_dim) : 0;
    const bool parallel = std::any_of(m.layers.begin(), m.layers.end(), [](const Layer& l) { return l.parallel; });
    const int64_t widths[] = {m.hidden,
                              m.hidden,
                              m.heads * m.head_dim,
                              m.kv_heads * m.head_dim,
                              m.kv_heads * m.head_dim,
                              m.heads * m.head_dim,
                              std::max(m.intermediate, m.beside),
                              std::max(m.intermediate, m.beside),
                              m.kv_heads * chosen_stride,
                              parallel ? m.hidden : 0,
                              m.heads * chunks * (m.head_dim + 16)};
    const auto room = [&](int i) { return round_up(widths[i] * (i < 10 ? rows : int64_t(in.single.size()))); };
    const int64_t tile_stride = in.tiles.empty() ? 0 : chosen->tile_floats(m.head_dim);
    int64_t floats = (scores_stride + tile_stride) * threads;
    for (int i = 0; i < 11; ++i) floats += room(i);
    Routes routes;
    floats += lay_out(routes, rows, threads, nullptr);
    if (floats > capacity_) {
      buffer_.reset(static_cast<float*>(std::aligned_alloc(64, size_t(floats) * sizeof(float))));
      if (!buffer_) throw std::bad_alloc();
      ask_huge_pages(buffer_.get(), size_t(floats) * sizeof(float), false);
      capacity_ = floats;
    }
    float* next = buffer_.get();
    float* parts[11];
    for (int i = 0; i < 11; ++i) {
      parts[i] = next;
      next += room(i);
    }
    Scratch s;
    s.state = parts[0];
    s.normed = parts[1];
    s.query = parts[2];
    s.key = parts[3];
    s.value = parts[4];
    s.attended = parts[5];
    s.inner = parts[6];
    s.up = parts[7];
    s.chosen = reinterpret_cast<int32_t*>(parts[8]);
    s.added = parts[9];
    s.partial = parts[10];
    s.scores = next;
    s.tile = next + scores_stride * threads;
    s.tile_stride = tile_stride;
    lay_out(routes, rows, threads, s.tile + tile_stride * threads);
    s.routes = routes;
    if (taken_.size() != m.layers.size()) taken_ = std::vector<std::atomic<int>>(m.layers.size());
    for (std::atomic<int>& one : taken_) one.store(0, std::memory_order_relaxed);
    s.taken = taken_.data();
    s.chunks = chunks;
    s.chosen_stride = chosen_stride;
    s.scores_stride = scores_stride;
    s.hidden_codes = hidden_codes_.reserve(rows, m.hidden);
    s.attended_codes = attended_codes_.reserve(rows, m.heads * m.head_dim);
    s.inner_codes = inner_codes_.reserve(rows, m.intermediate);
    return s;
  }

  // Floats that what is known of a mixture's rows needs; `next`, if not null, is where it stands.
  int64_t lay_out(Routes& r, int64_t rows, int threads, float* next) {
    int64_t experts = 0, top = 0, inner = 0;
    bool codes = false;
    for (const Layer& l : model_.layers) {
      if (!l.mixture) continue;
      experts = std::max(experts, l.mixture.experts());
      top = std::max(top, l.mixture.top);
      inner = l.mixture.inner();
      for (const MatrixStack* stack : {&l.mixture.gate, &l.mixture.up, &l.mixture.down})
        codes = codes || stack->first.takes_codes();
    }
    if (!experts) return 0;
    const int64_t pairs = rows * top;
    int64_t used = 0;
    const auto take = [&](int64_t count) {
      float* at = next ? next + used : nullptr;
      used += round_up(count);
      return at;
    };
    const auto take_ints = [&](int64_t count) { return reinterpret_cast<int32_t*>(take(count)); };
    r.logits = take(rows * experts);
    r.beside = take(rows);
    r.weights = take(pairs);
    r.chosen = take_ints(pairs);
    r.place = take_ints(pairs);
    r.row = take_ints(pairs);
    r.used = take_ints(experts);
    r.begin = take_ints(experts + 1);
    r.count = take_ints(experts + 1);
    r.ranked = reinterpret_cast<Ranked*>(take(2 * experts * threads));
    r.rows = take(pairs * model_.hidden);
    r.inner = take(pairs * inner);
    r.up = take(pairs * inner);
    if (next && codes) {
      r.row_codes = row_codes_.reserve(pairs, model_.hidden);
      r.inner_codes = pair_codes_.reserve(pairs, inner);
    }
    if (next && model_.beside) r.beside_codes = beside_codes_.reserve(rows, model_.beside);
    return used;
  }

  static int64_t round_up(int64_t n) { return (n + 15) / 16 * 16; }

  Model model_;
  Cache cache_;
  std::unique_ptr<float, Free> buffer_;
  CodesBuffer hidden_codes_, attended_codes_, inner_codes_;
  CodesBuffer row_codes_, pair_codes_, beside_codes_;  // of mixtures
  std::vector<std::atomic<int>> taken_;
  int64_t capacity_ = 0;
};

}  // namespace

const Kernels& kernels() { return *chosen; }

}  // namespace hasten

NB_MODULE(_native, m) {
  using namespace hasten;
  m.doc() = "hasten's compiled kernels. Addresses of contiguous tensors come as integers; see hasten.kernels.";
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  nb::class_<Matrix>(m, "Matrix");
  m.def("matrix", &make_matrix, nb::arg("bits"), nb::arg("out"), nb::arg("in_"), nb::arg("group"), nb::arg("codes"),
        nb::arg("scales"), nb::arg("mins"), nb::arg("bias"), nb::arg("codes_in") = false, nb::arg("tiled") = false);
  m.def("constants", [] {
    nb::dict found;
    found["kv_cache.BLOCK"] = kBlock;
    found["packed_linear.GROUP"] = kGroup;
    found["tiles.TILE"] = kTile;
    found["compiled.LANES"] = kLanes;
    found["compiled.MOST_TREE_ROWS"] = kMostTreeRows;
    found["selective_scan.CHUNK"] = ScanArgs::kChunk;
    found["selective_scan.MAX_STATES"] = ScanArgs::kMostStates;
    found["rational.BLOCK_ROWS"] = RationalArgs::kRows;
    found["rational.TOP"] = RationalArgs::kTop;
    found["rational.BOTTOM"] = RationalArgs::kBottom;
    found["ternary_linear.BLOCK"] = TernaryArgs::kBlock;
    found["ternary_linear.BLOCK_BYTES"] = TernaryArgs::kBytes;
    found["deform_conv.MOST_SIDE"] = DeformArgs::kMostSide;
    found["sparse_linear.GROUP"] = SparseMatrix::kGroup;
    found["sparse_linear.FEW_ROWS"] = SparseMatrix::kMostRows;
    nb::dict formats;
    formats["fp32"] = int(kFp32);
    formats["fp16"] = int(kFp16);
    formats["bf16"] = int(kBf16);
    formats["int8"] = int(kInt8);
    formats["int4"] = int(kInt4);
    formats["q5_0"] = int(kQ5_0);
    formats["q5_1"] = int(kQ5_1);
    formats["q2_k"] = int(kQ2K);
    formats["q3_k"] = int(kQ3K);
    formats["q4_k"] = int(kQ4K);
    formats["q5_k"] = int(kQ5K);
    formats["q6_k"] = int(kQ6K);
    formats["iq4_nl"] = int(kIq4Nl);
    formats["iq4_xs"] = int(kIq4Xs);
    formats["mxfp4"] = int(kMxfp4);
    found["compiled.FORMATS"] = formats;
    nb::dict activations;
    activations["silu"] = int(kSilu);
    activations["gelu"] = int(kGelu);
    activations["gelu_tanh"] = int(kGeluTanh);
    found["compiled.ACTIVATIONS"] = activations;
    return found;
  }, "Sizes that the kernels were compiled with, by the names that hasten.kernels has for them.");
  m.def("linear", &linear, unlocked);
  m.def("dequantize", &dequantize, unlocked);
  m.def("dequantize_rows", &dequantize_rows, unlocked);
  m.def("vector_rate", &vector_rate, unlocked, "Multiply-adds of 16 floats that threads do in a second.");
  m.def("code_rate", &code_rate, unlocked, "Products of int8 codes that threads do and add up in a second.");
  m.def("read_rate", &read_rate, unlocked, "Bytes a second that threads read from memory at an address.");
  m.def("ask_huge_pages", [](uintptr_t address, size_t bytes, bool filled) {
    ask_huge_pages(pointer<void>(address), bytes, filled);
  }, unlocked, "Asks the system to keep memory in pages of 2 MiB; what is filled already moves now.");
  m.def("isas", &isas, "Instruction sets this machine runs, best first.");
  m.def("threads_of", [] { return std::string(kThreads); }, "Whose threads share the work.");
  m.def("isa", [] { return std::string(chosen->name); }, "The instruction set in use.");
  m.def("use_isa", &use_isa, "Use another of isas(): for tests and comparisons.");
  nb::class_<Norm>(m, "Norm").def(nb::init<>());
  m.def("norm", &make_norm, nb::arg("weight"), nb::arg("bias"), nb::arg("epsilon"), nb::arg("centred"));
  nb::class_<MatrixStack>(m, "MatrixStack");
  m.def("matrix_stack", [](const Matrix& first, int64_t count, int64_t codes_step, int64_t scales_step, int64_t bias_step) {
    return MatrixStack{first, count, codes_step, scales_step, bias_step};
  }, "Matrices of one kind, one for each expert: the first one, and by how much the next stands behind it.");
  nb::class_<Mixture>(m, "Mixture", "A layer's experts, see types.hpp.")
      .def(nb::init<>())
      .def_rw("router", &Mixture::router)
      .def_rw("gate", &Mixture::gate)
      .def_rw("up", &Mixture::up)
      .def_rw("down", &Mixture::down)
      .def_rw("top", &Mixture::top)
      .def_rw("softmax_first", &Mixture::softmax_first)
      .def_rw("normed", &Mixture::normed)
      .def_rw("alpha", &Mixture::alpha)
      .def_rw("limit", &Mixture::limit)
      .def_rw("beside", &Mixture::beside);
  nb::class_<Layer>(m, "Layer", "A layer's parts, see types.hpp: what is not set is not there.")
      .def(nb::init<>())
      .def_rw("attention_norm", &Layer::attention_norm)
      .def_rw("attention_after", &Layer::attention_after)
      .def_rw("feed_forward_norm", &Layer::feed_forward_norm)
      .def_rw("feed_forward_after", &Layer::feed_forward_after)
      .def_rw("query_norm", &Layer::query_norm)
      .def_rw("key_norm", &Layer::key_norm)
      .def_rw("norm_together", &Layer::norm_together)
      .def_rw("query", &Layer::query)
      .def_rw("key", &Layer::key)
      .def_rw("value", &Layer::value)
      .def_rw("output", &Layer::output)
      .def_rw("gate", &Layer::gate)
      .def_rw("up", &Layer::up)
      .def_rw("down", &Layer::down)
      .def_rw("mixture", &Layer::mixture)
      .def_prop_rw(
          "sinks", [](const Layer& l) { return reinterpret_cast<uintptr_t>(l.sinks); },
          [](Layer& l, uintptr_t sinks) { l.sinks = pointer<const float>(sinks); })
      .def_rw("window", &Layer::window)
      .def_rw("rotary", &Layer::rotary)
      .def_prop_rw(
          "activation", [](const Layer& l) { return int(l.activation); },
          [](Layer& l, int activation) {
            if (activation < kSilu || activation > kGeluTanh) throw std::invalid_argument("an activation that is not compiled");
            l.activation = Activation(activation);
          })
      .def_rw("parallel", &Layer::parallel);
  nb::class_<Decoder>(m, "Decoder")
      .def(nb::init<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float>())
      .def("set_ends", &Decoder::set_ends)
      .def("set_scales", &Decoder::set_scales)
      .def("add_rotary", &Decoder::add_rotary)
      .def("add_layer", &Decoder::add_layer)
      .def("set_cache", &Decoder::set_cache)
      .def("step", &Decoder::step, unlocked);
  bind_selective_scan(m);
  bind_associative_scan(m);
  bind_rational(m);
  bind_ternary(m);
  bind_experts(m);
  bind_sparse(m);
  bind_deform(m);
  bind_dram(m);
  bind_oblivious(m);
}
