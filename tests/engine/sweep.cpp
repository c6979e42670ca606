// One small model, decoded in every way: sweep MODEL FOLDER given|exact|cached WAY..., with the engine's tools in the
// working directory. The logits of each way go to FOLDER/WAY, row after row, as floats; a way that the engine refuses leaves
// a sentence in FOLDER/WAY.no. Which tokens follow does not depend on the logits, so the same program with and without our
// back end gives the same rows. `exact` puts attention in f64 in the place of what the engine computed, in the nodes that
// our back end would take; `cached`, in those of them that attend to a KV cache, which is all that it takes unless the
// policy is full. FOLDER/uncached appears where the two differ.
//
// sweep compare OURS THEIRS WAY... prints the mean square of the difference of two such files over that of THEIRS: inf,
// where only ours are no numbers, nan, where theirs are none.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "adamas/adamas.h"
#include "ggml-backend.h"
#include "llama.h"

namespace {

struct Refused {
  std::string sentence;
};

// What the engine says no to is no fault: some models take nothing back, some caches cannot be shifted.
void want(bool truth, const char* what) {
  if (!truth) throw Refused{what};
}

enum class Exact { none, cached, all };

struct Options {
  ggml_type k, v;
  Exact exact;
};

constexpr int64_t min_context = 64;  // ADAMAS_MIN_CONTEXT of the sweep
constexpr int64_t prompt_rows = 64;  // of a sequence that has a cache; from here on they are the engine's (ADAMAS_PROMPT)

const char* at(const ggml_tensor* t, int64_t i1, int64_t i2, int64_t i3) {
  return static_cast<const char*>(t->data) + static_cast<size_t>(i1) * t->nb[1] + static_cast<size_t>(i2) * t->nb[2] +
         static_cast<size_t>(i3) * t->nb[3];
}

// Row i1 of a head and a sequence, whatever its type.
void load(const ggml_tensor* t, int64_t i1, int64_t i2, int64_t i3, std::vector<float>& row) {
  row.resize(static_cast<size_t>(t->ne[0]));
  if (t->type == GGML_TYPE_F32)
    std::memcpy(row.data(), at(t, i1, i2, i3), row.size() * sizeof(float));
  else
    ggml_get_type_traits(t->type)->to_float(at(t, i1, i2, i3), row.data(), t->ne[0]);
}

// out = softmax(scale q k + slope mask, sink) v, of every row, head and sequence, as FLASH_ATTN_EXT is meant.
void attend(ggml_tensor* node) {
  const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3], *sinks = node->src[4];
  float scale, max_bias, softcap;
  std::memcpy(&scale, node->op_params, sizeof scale);
  std::memcpy(&max_bias, node->op_params + 1, sizeof max_bias);
  std::memcpy(&softcap, node->op_params + 2, sizeof softcap);
  const int64_t rows = q->ne[1], heads = q->ne[2], batch = q->ne[3], tokens = k->ne[1];
  const double even_heads = std::exp2(std::floor(std::log2(static_cast<double>(heads))));
  std::vector<float> query, row;
  std::vector<double> weight(static_cast<size_t>(tokens)), out(static_cast<size_t>(v->ne[0]));
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t r = 0; r < rows; ++r) {
        const double power = h < even_heads ? -max_bias * static_cast<double>(h + 1) / even_heads
                                            : -max_bias * (static_cast<double>(h) - even_heads + 0.5) / even_heads;
        const double slope = max_bias > 0 ? std::exp2(power) : 1;
        const double sink = sinks ? static_cast<double>(static_cast<const float*>(sinks->data)[h]) : -INFINITY;
        const auto* biases =
            mask ? reinterpret_cast<const ggml_fp16_t*>(at(mask, r, h % mask->ne[2], b % mask->ne[3])) : nullptr;
        load(q, r, h, b, query);
        double highest = sink;
        for (int64_t t = 0; t < tokens; ++t) {
          const float bias = biases ? ggml_fp16_to_fp32(biases[t]) : 0.0f;
          double score = -INFINITY;
          if (bias != -INFINITY) {
            load(k, t, h / (heads / k->ne[2]), b / (batch / k->ne[3]), row);
            score = 0;
            for (size_t d = 0; d < row.size(); ++d) score += static_cast<double>(query[d]) * static_cast<double>(row[d]);
            score *= static_cast<double>(scale);
            if (softcap != 0) score = static_cast<double>(softcap) * std::tanh(score / static_cast<double>(softcap));
            score += slope * static_cast<double>(bias);
          }
          weight[static_cast<size_t>(t)] = score;
          highest = std::max(highest, score);
        }
        double sum = std::exp(sink - highest);
        std::fill(out.begin(), out.end(), 0);
        for (int64_t t = 0; t < tokens; ++t) {
          const double w = std::exp(weight[static_cast<size_t>(t)] - highest);
          if (!(w > 0)) continue;  // hidden, and then what lies there is no number perhaps
          sum += w;
          load(v, t, h / (heads / v->ne[2]), b / (batch / v->ne[3]), row);
          for (size_t d = 0; d < row.size(); ++d) out[d] += w * static_cast<double>(row[d]);
        }
        auto* to = reinterpret_cast<float*>(const_cast<char*>(at(node, h, r, b)));
        for (size_t d = 0; d < out.size(); ++d) to[d] = sum > 0 ? static_cast<float>(out[d] / sum) : 0;
      }
}

bool is_supported_head_dim(int64_t head_dim) {
  for (int32_t i = 0; i < adamas_head_dim_count(); ++i)
    if (adamas_head_dim(i) == head_dim) return true;
  return false;
}

bool met_uncached = false;

bool is_ours(const ggml_tensor* node, Exact exact) {
  if (node->op != GGML_OP_FLASH_ATTN_EXT) return false;
  const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2];
  if (k->ne[0] != v->ne[0] || !is_supported_head_dim(k->ne[0]) || k->ne[0] % ggml_blck_size(k->type) != 0 ||
      k->ne[0] % ggml_blck_size(v->type) != 0 || k->ne[1] < min_context)
    return false;
  if (k->view_src && std::strncmp(k->view_src->name, "cache_k_l", 9) == 0) return q->ne[1] < prompt_rows;
  met_uncached = true;
  return exact == Exact::all;
}

// The engine asks of each node whether we want to see it, and shows it when it is computed.
bool made_exact(ggml_tensor* node, bool ask, void* exact) {
  const bool ours = is_ours(node, *static_cast<const Exact*>(exact));
  if (ours && !ask) attend(node);
  return ours || !ask;
}

struct Shape {
  int sequences = 1;
  bool unified = false;
  bool whole_windows = false;  // caches of sliding windows keep every token, as a context shift wants
};

using Bytes = std::vector<uint8_t>;

class Context {
 public:
  Context(llama_model* model, const Options& options, Shape shape)
      : positions(static_cast<size_t>(shape.sequences)), exact(options.exact) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(512 * (shape.unified ? 1 : shape.sequences));
    params.n_batch = params.n_ubatch = 256;
    params.n_seq_max = static_cast<uint32_t>(shape.sequences);
    params.kv_unified = shape.unified;
    params.swa_full = shape.whole_windows;
    params.type_k = options.k;
    params.type_v = options.v;
    params.n_threads = params.n_threads_batch = 1;  // others of us run on the other processors
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    if (exact != Exact::none) {
      params.cb_eval = made_exact;
      params.cb_eval_user_data = &exact;
    }
    context.reset(llama_init_from_model(model, params));
    want(context != nullptr, "no context");
    memory = llama_get_memory(context.get());
    vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    kept = std::min(vocabulary, 512);
  }

  // So many rows of each sequence, all of them in one batch. The logits of all are kept, or of none.
  void step(const std::vector<int>& rows, bool keep = true) {
    int32_t count = 0;
    for (int n : rows) count += n;
    llama_batch batch = llama_batch_init(count, 0, 1);
    for (size_t s = 0; s < rows.size(); ++s)
      for (int i = 0; i < rows[s]; ++i) add(batch, static_cast<llama_seq_id>(s), positions[s]++, keep);
    const int status = llama_decode(context.get(), batch);
    llama_batch_free(batch);
    want(status == 0, "llama_decode");
    for (int32_t i = 0; keep && i < count; ++i) {
      const float* row = llama_get_logits_ith(context.get(), i);
      want(row != nullptr, "no logits");
      logits.insert(logits.end(), row, row + kept);
    }
  }
  void read(int rows, size_t sequence = 0) {
    std::vector<int> of(sequence + 1);
    of[sequence] = rows;
    step(of, false);
  }
  void steps(int count, int sequences = 1) {
    for (int i = 0; i < count; ++i) step(std::vector<int>(static_cast<size_t>(sequences), 1));
  }
  // The last rows of a sequence go, and others than these come in their place.
  void take_back(int rows, size_t sequence = 0) {
    positions[sequence] -= rows;
    want(llama_memory_seq_rm(memory, static_cast<llama_seq_id>(sequence), positions[sequence], -1), "nothing is taken back");
    ++salt;
  }
  // Rows [from, to) go, the later ones move down.
  void shift(llama_pos from, llama_pos to) {
    want(llama_memory_can_shift(memory), "no shift");
    want(llama_memory_seq_rm(memory, 0, from, to), "nothing is taken out");
    llama_memory_seq_add(memory, 0, to, -1, from - to);
    positions[0] -= to - from;
  }
  void copy() {
    llama_memory_seq_cp(memory, 0, 1, -1, -1);
    positions[1] = positions[0];
  }
  Bytes state() const {
    Bytes bytes(llama_state_get_size(context.get()));
    bytes.resize(llama_state_get_data(context.get(), bytes.data(), bytes.size()));
    want(!bytes.empty(), "no state");
    return bytes;
  }
  void restore(const Bytes& bytes, const std::vector<llama_pos>& at) {
    want(llama_state_set_data(context.get(), bytes.data(), bytes.size()) == bytes.size(), "no state is restored");
    positions = at;
  }
  void copy_slot() {
    Bytes bytes(llama_state_seq_get_size(context.get(), 0));
    bytes.resize(llama_state_seq_get_data(context.get(), bytes.data(), bytes.size(), 0));
    want(!bytes.empty(), "no slot");
    want(llama_state_seq_set_data(context.get(), bytes.data(), bytes.size(), 1) == bytes.size(), "no slot is loaded");
    positions[1] = positions[0];
  }

  std::vector<llama_pos> positions;
  std::vector<float> logits;
  bool remembers() const { return memory != nullptr; }

 private:
  void add(llama_batch& batch, llama_seq_id sequence, llama_pos position, bool keep) {
    const auto i = static_cast<size_t>(batch.n_tokens++);
    uint32_t random = 2654435761u * static_cast<uint32_t>(position + 1);
    random += 40503u * static_cast<uint32_t>(sequence) + 97u * salt;
    random = (random ^ random >> 15) * 2246822519u;
    batch.token[i] = static_cast<llama_token>((random >> 8) % static_cast<uint32_t>(vocabulary));
    batch.pos[i] = position;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = sequence;
    batch.logits[i] = keep;
  }

  struct Free {
    void operator()(llama_context* context) const { llama_free(context); }
  };
  Exact exact;
  std::unique_ptr<llama_context, Free> context;
  llama_memory_t memory = nullptr;
  int vocabulary = 0, kept = 0;  // of each row's logits the first ones are kept
  uint32_t salt = 0;
};

// The ways. In each but `extended` at most 250 tokens are alive, in 256 cells and more: a budget of 255 covers them, and yet
// the attention is ours.
using Another = std::function<std::unique_ptr<Context>()>;  // a second context, like the first

void whole(Context& c, const Another&) { c.step({200}); }
void single(Context& c, const Another&) {
  c.read(180);
  c.steps(40);
}
void batches(Context& c, const Another&) {
  c.read(150);
  for (int rows : {3, 17, 5, 30, 1, 12}) c.step({rows});
}
void drafts(Context& c, const Another&) {
  c.read(180);
  for (int i = 0; i < 8; ++i) {
    c.step({4});
    c.take_back(2);
  }
}
void several(Context& c, const Another&) {
  c.read(70, 0);
  c.read(45, 1);
  c.read(60, 2);
  c.steps(8, 3);
  c.take_back(c.positions[1], 1);  // a slot begins anew, while the others go on
  c.step({1, 20, 1});
  c.steps(8, 3);
}
void copied(Context& c, const Another&) {
  c.read(100);
  c.copy();
  c.steps(10, 2);
}
void shift(Context& c, const Another&) {
  c.read(180);
  c.steps(5);
  c.shift(32, 80);
  c.steps(10);
  c.read(40);
  c.steps(10);
}
void state(Context& c, const Another& another) {
  c.read(160);
  c.steps(5);
  const Bytes bytes = c.state();
  const auto positions = c.positions;
  c.steps(5);
  c.restore(bytes, positions);
  c.steps(5);
  const auto fresh = another();
  fresh->restore(bytes, positions);
  fresh->steps(10);
  c.logits.insert(c.logits.end(), fresh->logits.begin(), fresh->logits.end());
}
void slot(Context& c, const Another&) {
  c.read(90, 0);
  c.read(40, 1);
  c.steps(5, 2);
  c.take_back(c.positions[1], 1);
  c.copy_slot();
  c.steps(10, 2);
}
// The attention grows from 256 cells to 512. No position reaches 256, which some of the models do not have.
void extended(Context& c, const Another&) {
  c.read(130, 0);
  c.read(115, 1);
  c.steps(10, 2);
  c.read(90, 0);
  c.steps(8, 2);
}

struct Way {
  const char* name;
  void (*run)(Context&, const Another&);
  Shape shape;
};

const Way ways[] = {
    {"whole", whole, {}},
    {"single", single, {}},
    {"batches", batches, {}},
    {"drafts", drafts, {}},
    {"several", several, {.sequences = 3}},
    {"several_unified", several, {.sequences = 3, .unified = true}},
    {"copied", copied, {.sequences = 2, .whole_windows = true}},
    {"copied_unified", copied, {.sequences = 2, .unified = true, .whole_windows = true}},
    {"shift", shift, {.whole_windows = true}},
    {"state", state, {}},
    {"slot", slot, {.sequences = 2}},
    {"extended", extended, {.sequences = 2, .unified = true}},
};

ggml_type type_of(const std::string& name) {
  for (int type = 0; type < GGML_TYPE_COUNT; ++type)
    if (const char* known = ggml_type_name(static_cast<ggml_type>(type)); known && name == known)
      return static_cast<ggml_type>(type);
  throw Refused{"no such type: " + name};
}

// WAY is what happens, K's type and V's: drafts-q8_0-f16.
std::vector<float> decode(llama_model* model, const std::string& name, Exact exact) {
  const size_t first = name.find('-'), second = name.find('-', first + 1);
  const auto way =
      std::find_if(std::begin(ways), std::end(ways), [&](const Way& known) { return name.substr(0, first) == known.name; });
  want(way != std::end(ways), "no such way");
  const Options options{type_of(name.substr(first + 1, second - first - 1)), type_of(name.substr(second + 1)), exact};
  const Another context = [&] { return std::make_unique<Context>(model, options, way->shape); };
  const auto c = context();
  want(c->remembers() || way->run == whole, "a model without a memory");
  way->run(*c, context);
  return c->logits;
}

std::vector<float> floats(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::vector<float> values(bytes.size() / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

double difference(const std::vector<float>& ours, const std::vector<float>& theirs) {
  double square = 0, error = 0;
  for (float x : theirs) square += static_cast<double>(x) * static_cast<double>(x);
  if (theirs.empty() || !std::isfinite(square)) return NAN;
  if (ours.size() != theirs.size()) return INFINITY;
  for (size_t i = 0; i < ours.size(); ++i) {
    const double x = static_cast<double>(ours[i]) - static_cast<double>(theirs[i]);
    error += x * x;
  }
  return error == 0 ? 0 : std::isfinite(error) && square > 0 ? error / square : INFINITY;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) return 2;
  if (std::string(arguments[1]) == "compare") {
    const std::string ours = arguments[2], theirs = arguments[3];
    for (int i = 4; i < count; ++i)
      std::printf("%s %g\n", arguments[i],
                  difference(floats(ours + "/" + arguments[i]), floats(theirs + "/" + arguments[i])));
    return 0;
  }
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  ggml_backend_load_all_from_path(".");
  llama_model* model = llama_model_load_from_file(arguments[1], llama_model_default_params());
  if (!model) return 3;
  const std::string folder = arguments[2];
  const std::string attention = arguments[3];
  const Exact exact = attention == "exact" ? Exact::all : attention == "cached" ? Exact::cached : Exact::none;
  for (int i = 4; i < count; ++i) {
    const std::string name = arguments[i];
    try {
      const std::vector<float> logits = decode(model, name, exact);
      std::ofstream(folder + "/" + name, std::ios::binary)
          .write(reinterpret_cast<const char*>(logits.data()), static_cast<std::streamsize>(logits.size() * sizeof(float)));
    } catch (const Refused& refused) {
      std::ofstream(folder + "/" + name + ".no") << refused.sentence;
    }
  }
  if (met_uncached) std::ofstream(folder + "/uncached");
  llama_model_free(model);
  return 0;
}
