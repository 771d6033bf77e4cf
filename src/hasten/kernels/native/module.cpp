// The Python module: chooses the kernels for this machine, and holds a decoder's pointers between steps.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

#include "barrier.hpp"
#include "bindings.hpp"

namespace hasten {

extern const Kernels kernels_generic;
#if defined(HASTEN_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

namespace {

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> found;
#if defined(HASTEN_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    found.push_back(&kernels_avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    found.push_back(&kernels_avx2);
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
                   uintptr_t mins, uintptr_t bias) {
  Matrix m;
  m.bits = bits;
  m.out = out;
  m.in = in;
  m.group = group;
  m.codes = pointer<const void>(codes);
  m.scales = pointer<const uint16_t>(scales);
  m.mins = pointer<const uint16_t>(mins);
  m.bias = pointer<const float>(bias);
  return m;
}

void linear(const Matrix& m, uintptr_t x, int rows, uintptr_t y, int threads) {
#pragma omp parallel num_threads(threads)
  {
    int64_t n0, n1;
    share(m.out, 8, omp_get_thread_num(), omp_get_num_threads(), n0, n1);
    chosen->multiply(m, pointer<const float>(x), m.in, rows, pointer<float>(y), m.out, n0, n1);
  }
}

void dequantize(const Matrix& m, uintptr_t y, int threads) {
#pragma omp parallel num_threads(threads)
  {
    int64_t n0, n1;
    share(m.out, 8, omp_get_thread_num(), omp_get_num_threads(), n0, n1);
    chosen->unpack(m, pointer<float>(y) + n0 * m.in, n0, n1);
  }
}

void dequantize_rows(const Matrix& m, uintptr_t ids, int64_t count, uintptr_t y) {
  const int64_t* rows = pointer<const int64_t>(ids);
  for (int64_t i = 0; i < count; ++i) chosen->unpack(m, pointer<float>(y) + i * m.in, rows[i], rows[i] + 1);
}

// Vector instructions (multiply-adds of 16 floats) that `threads` threads do in a second.
double vector_rate(int threads) {
  const int64_t rounds = 4'000'000;
  float kept = 0;
  double best = 0;
  for (int attempt = 0; attempt < 5; ++attempt) {
    const double begun = omp_get_wtime();
#pragma omp parallel num_threads(threads) reduction(+ : kept)
    kept += chosen->multiply_adds(rounds);
    const double rate = double(rounds) * kChains * threads / (omp_get_wtime() - begun);
    best = std::max(best, rate);
  }
  return kept == 0 ? 0 : best;
}

class Decoder {
 public:
  Decoder(int64_t hidden, int64_t intermediate, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t vocabulary,
          float epsilon, float scaling) {
    model_.hidden = hidden;
    model_.intermediate = intermediate;
    model_.heads = heads;
    model_.kv_heads = kv_heads;
    model_.head_dim = head_dim;
    model_.vocabulary = vocabulary;
    model_.epsilon = epsilon;
    model_.scaling = scaling;
  }

  void set_ends(const Matrix& embedding, const Matrix& head, uintptr_t final_norm) {
    model_.embedding = embedding;
    model_.head = head;
    model_.final_norm = pointer<const float>(final_norm);
  }

  void set_rotary(uintptr_t cosines, uintptr_t sines, int64_t positions) {
    model_.cosines = pointer<const float>(cosines);
    model_.sines = pointer<const float>(sines);
    model_.positions = positions;
  }

  void add_layer(uintptr_t input_norm, uintptr_t post_norm, uintptr_t query_norm, uintptr_t key_norm,
                 const std::vector<Matrix>& weights) {
    if (weights.size() != 7) throw std::invalid_argument("a layer has seven weight matrices");
    Layer l;
    l.input_norm = pointer<const float>(input_norm);
    l.post_norm = pointer<const float>(post_norm);
    l.query_norm = pointer<const float>(query_norm);
    l.key_norm = pointer<const float>(key_norm);
    l.query = weights[0];
    l.key = weights[1];
    l.value = weights[2];
    l.output = weights[3];
    l.gate = weights[4];
    l.up = weights[5];
    l.down = weights[6];
    model_.layers.push_back(l);
  }

  void set_cache(int bits, int64_t batch, int64_t blocks, int64_t block, int64_t window, int64_t sinks,
                 int64_t sink_blocks, int64_t ring_blocks, int64_t recent,
                 const std::vector<std::vector<uintptr_t>>& layers) {
    cache_ = Cache();
    cache_.bits = bits;
    cache_.batch = batch;
    cache_.blocks = blocks;
    cache_.block = block;
    cache_.window = window;
    cache_.sinks = sinks;
    cache_.sink_blocks = sink_blocks;
    cache_.ring_blocks = ring_blocks;
    cache_.recent = recent;
    for (const auto& p : layers) {
      if (p.size() != 8) throw std::invalid_argument("a layer's cache has eight tensors");
      LayerCache l;
      l.keys = pointer<void>(p[0]);
      l.values = pointer<void>(p[1]);
      l.key_scales = pointer<uint16_t>(p[2]);
      l.key_mins = pointer<uint16_t>(p[3]);
      l.value_scales = pointer<uint16_t>(p[4]);
      l.value_mins = pointer<uint16_t>(p[5]);
      l.recent_keys = pointer<float>(p[6]);
      l.recent_values = pointer<float>(p[7]);
      cache_.layers.push_back(l);
    }
    if (cache_.layers.size() != model_.layers.size()) throw std::invalid_argument("one cache for each layer");
    capacity_ = 0;
  }

  // Pointers to int64: ids, seq, pos (rows each), committed, quantized (batch each). Checked here, once a
  // step, so that no kernel reads or writes outside a tensor.
  void step(uintptr_t ids, uintptr_t seq, uintptr_t pos, int rows, int logits_from, uintptr_t committed,
            uintptr_t quantized, uintptr_t logits, int threads) {
    Tokens in;
    in.rows = rows;
    in.logits_from = logits_from;
    in.ids = pointer<const int64_t>(ids);
    in.seq = pointer<const int64_t>(seq);
    in.pos = pointer<const int64_t>(pos);
    in.committed = pointer<const int64_t>(committed);
    in.quantized = pointer<const int64_t>(quantized);
    check(in);
    const Scratch scratch = reserve(rows, threads);
#pragma omp parallel num_threads(threads)
    {
      const int present = omp_get_num_threads();
#pragma omp single
      { barrier_ = std::make_unique<Barrier>(present); }
      chosen->step(model_, cache_, in, scratch, pointer<float>(logits), omp_get_thread_num(), present, *barrier_);
    }
  }

 private:
  void check(const Tokens& in) const {
    const int64_t limit =
        cache_.ring_blocks ? model_.positions : std::min(model_.positions, cache_.blocks * cache_.block);
    // Rows of a step beyond the ring's or the recent part's slack would overwrite what earlier rows read.
    const int64_t slack = cache_.bits < kBf16 ? cache_.recent - cache_.block + 1 : in.rows;
    for (int t = 0; t < in.rows; ++t) {
      if (in.ids[t] < 0 || in.ids[t] >= model_.vocabulary) throw std::out_of_range("a token id outside the vocabulary");
      if (in.seq[t] < 0 || in.seq[t] >= cache_.batch) throw std::out_of_range("a sequence outside the batch");
      const int64_t from = in.committed[in.seq[t]];
      if (in.pos[t] < from || in.pos[t] >= limit) throw std::out_of_range("a position outside the cache");
      if (in.pos[t] - from >= slack || (cache_.ring_blocks && in.pos[t] - from >= cache_.block))
        throw std::out_of_range("too many tokens of one sequence in a step");
    }
  }

  Scratch reserve(int rows, int threads) {
    const Model& m = model_;
    const int64_t visible =
        (cache_.ring_blocks ? cache_.sink_blocks + cache_.ring_blocks + 2 : cache_.blocks) * cache_.block;
    const int64_t widths[] = {m.hidden,
                              std::max(m.hidden, m.heads * m.head_dim),
                              m.heads * m.head_dim,
                              m.kv_heads * m.head_dim,
                              m.kv_heads * m.head_dim,
                              m.heads * m.head_dim,
                              m.intermediate,
                              m.intermediate};
    int64_t floats = 0;
    for (int64_t width : widths) floats += round_up(width * rows);
    const int64_t per_thread = round_up(visible + 64);
    floats += per_thread * threads;
    if (floats > capacity_) {
      buffer_.reset(static_cast<float*>(std::aligned_alloc(64, size_t(floats) * sizeof(float))));
      if (!buffer_) throw std::bad_alloc();
      capacity_ = floats;
    }
    float* next = buffer_.get();
    float* parts[8];
    for (int i = 0; i < 8; ++i) {
      parts[i] = next;
      next += round_up(widths[i] * rows);
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
    s.scores = next;
    s.scores_stride = per_thread;
    return s;
  }

  static int64_t round_up(int64_t n) { return (n + 15) / 16 * 16; }

  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  Model model_;
  Cache cache_;
  std::unique_ptr<float, Free> buffer_;
  std::unique_ptr<Barrier> barrier_;
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
        nb::arg("scales"), nb::arg("mins"), nb::arg("bias"));
  m.def("linear", &linear, unlocked);
  m.def("dequantize", &dequantize, unlocked);
  m.def("dequantize_rows", &dequantize_rows, unlocked);
  m.def("vector_rate", &vector_rate, unlocked);
  m.def("isas", &isas, "Instruction sets this machine runs, best first.");
  m.def("isa", [] { return std::string(chosen->name); }, "The instruction set in use.");
  m.def("use_isa", &use_isa, "Use another of isas(): for tests and comparisons.");
  nb::class_<Decoder>(m, "Decoder")
      .def(nb::init<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float, float>())
      .def("set_ends", &Decoder::set_ends)
      .def("set_rotary", &Decoder::set_rotary)
      .def("add_layer", &Decoder::add_layer)
      .def("set_cache", &Decoder::set_cache)
      .def("step", &Decoder::step, unlocked);
  bind_selective_scan(m);
  bind_associative_scan(m);
  bind_rational(m);
  bind_ternary(m);
  bind_experts(m);
}
