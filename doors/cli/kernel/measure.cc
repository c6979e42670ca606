#include "measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <utility>

#include "../failure.h"
#include "data.h"
#include "machine.h"

namespace cli::kernel {
namespace {

constexpr double setup_rounds = 8;  // making K, V and codes takes about as long as so many rounds

double round_work(const Place& place) {
  return static_cast<double>(place.layers() * place.tokens * place.shape.row_bytes());
}

// One setting of ours over all layers: their codes, and what the steps took.
class Ours {
 public:
  Ours(const Setting& setting, const Shape& shape, std::int64_t tokens, int layers, int threads)
      : setting_(setting),
        shape_(shape),
        threads_(threads),
        plan_({.q_heads = shape.q_heads,
               .kv_heads = shape.kv_heads,
               .head_dim = shape.head_dim,
               .max_tokens = tokens,
               .max_threads = threads},
              setting.config) {
    measured_.name = setting.name;
    measured_.out.resize(static_cast<std::size_t>(shape.q_heads * shape.head_dim));
    for (int layer = 0; layer < layers; layer++)
      caches_.emplace_back(
          adamas::CacheParams{.layer = layer, .kv_heads = shape.kv_heads, .head_dim = shape.head_dim, .capacity = tokens},
          setting.config);
  }

  // A token was appended, its K and V written: `tokens` with it. The first step of a layer finds all of them new.
  void step(const Layer& layer, std::size_t index, std::int64_t tokens, const std::vector<float>& q, bool first) {
    adamas::Cache& cache = caches_[index];
    cache.append(first ? adamas::TokenRange{.count = tokens} : adamas::TokenRange{.first = tokens - 1, .count = 1});
    adamas_step_times times{};
    times.struct_size = sizeof times;
    const adamas::RowsStrides strides{.head = shape_.head_dim, .token = std::int64_t{shape_.kv_heads} * shape_.head_dim};
    const auto start = std::chrono::steady_clock::now();
    const adamas_step_stats stats =
        plan_.step(cache, {.q = q,
                           .k = {layer.k(), strides},
                           .v = {layer.v(), strides},
                           .out = measured_.out,
                           .lengths = {&tokens, 1},
                           .threads = threads_,
                           .verify = true,
                           .verify_rows = ADAMAS_VERIFY_ROWS,  // as the back end for llama.cpp does
                           .times = &times});
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (!first) note(seconds, times, stats, tokens);
  }

  Measured& measured() { return measured_; }

 private:
  void note(double seconds, const adamas_step_times& times, const adamas_step_stats& stats, std::int64_t tokens) {
    measured_.seconds.push_back(seconds);
    const StageBytes bytes = bytes_of({shape_, setting_.config.native(), tokens, ADAMAS_VERIFY_ROWS, stats});
    for (std::size_t i = 0; i < stages.size(); i++) {
      measured_.stage_seconds[i].push_back(static_cast<double>(times.*stages[i].time) / 1e9 / threads_);
      measured_.bytes[i] += bytes[i];
    }
    measured_.stats.tokens_visible += stats.tokens_visible;
    measured_.stats.heads_sparse += stats.heads_sparse;
    measured_.stats.heads_guarded += stats.heads_guarded;
    measured_.stats.tokens_selected += stats.tokens_selected;
    measured_.stats.rows_read += stats.rows_read;
    measured_.stats.mass += stats.mass;
  }

  Setting setting_;
  Shape shape_;
  int threads_;
  adamas::Plan plan_;
  std::vector<adamas::Cache> caches_;
  Measured measured_;
};

}  // namespace

void require_equal(const std::vector<float>& ours, const std::vector<float>& ggml) {
  float largest = 0, difference = 0;
  for (std::size_t i = 0; i < ours.size(); i++) {
    largest = std::max(largest, std::abs(ours[i]));
    difference = std::max(difference, std::abs(ours[i] - ggml[i]));
  }
  if (!(difference <= 0.05f * largest))
    throw Failure(exit_failed, fmt::format("our dense attention and ggml's differ by {:g} where the largest value is {:g}",
                                           difference, largest));
}

double Point::scores_per_second(const Measured& one) const {
  const auto estimate = std::find_if(stages.begin(), stages.end(),
                                     [](const auto& stage) { return stage.time == &adamas_step_times::estimate; });
  return static_cast<double>(one.stats.tokens_visible) / one.steps() /
         (one.stage(static_cast<std::size_t>(estimate - stages.begin())) * threads);
}

int Place::layers() const {
  const std::int64_t wanted = std::max(4 * last_level_cache(), std::int64_t{512} << 20);
  const std::int64_t layer = 2 * tokens * shape.row_bytes();
  return static_cast<int>((wanted + layer - 1) / layer);
}

std::int64_t Place::rounds() const { return (repeat + layers() - 1) / layers(); }

double Place::memory(std::size_t settings) const {  // the codes of a setting are at most a sixth of K and V
  return 2.0 * static_cast<double>(tokens * shape.row_bytes()) * layers() * (1 + static_cast<double>(settings) / 6);
}

double Place::work() const { return round_work(*this) * (setup_rounds + static_cast<double>(rounds())); }

Point measure(const Place& place, const std::vector<Setting>& settings, GgmlAttention* ggml, Progress& progress) {
  const auto& [shape, tokens, repeat, threads] = place;
  const std::int64_t rounds = place.rounds();
  Point point{shape, tokens, place.layers(), threads, memory_bandwidth(threads), {}, {}};
  const double work = round_work(place);
  const std::string where = fmt::format("{}, {} tokens", shape.name(), tokens);

  std::vector<Layer> layers;
  for (int layer = 0; layer < point.layers; layer++) {
    layers.emplace_back(shape, tokens, static_cast<std::uint64_t>(layer), threads);
    progress.advance(setup_rounds / 2 * work / point.layers, where);
  }
  std::vector<std::unique_ptr<Ours>> ours;
  for (const Setting& setting : settings)
    ours.push_back(std::make_unique<Ours>(setting, shape, tokens, point.layers, threads));
  // Dense attention stands between sparse ones: it reads all of K and V, and leaves nothing of theirs in a cache.
  std::vector<float> ggml_out(static_cast<std::size_t>(shape.q_heads * shape.head_dim));
  const auto turn = [&](std::int64_t round) {
    // Layers differ by up to a block, so that the open ones are half full on the average.
    const auto length_of = [&](std::size_t layer) {
      return place.tokens - rounds + round - static_cast<std::int64_t>((16 + 11 * layer) % ADAMAS_BLOCK_TOKENS);
    };
    const auto all_layers = [&](const auto& step) {
      for (std::size_t layer = 0; layer < layers.size(); layer++) step(layer, length_of(layer), layers[layer].query(round));
    };
    const auto ggml_steps = [&] {
      if (ggml == nullptr) return;
      all_layers([&](std::size_t layer, std::int64_t length, const std::vector<float>& q) {
        const double seconds = ggml->step(q.data(), layers[layer].k(), layers[layer].v(), length, 1, ggml_out.data());
        if (round > 0) point.ggml.push_back(seconds);
      });
    };
    const auto our_steps = [&](Ours& one) {
      all_layers([&](std::size_t layer, std::int64_t length, const std::vector<float>& q) {
        one.step(layers[layer], layer, length, q, round == 0);
      });
    };
    for (std::size_t i = 0; i + 1 < ours.size(); i++) {
      our_steps(*ours[i]);
      if (i == 0) our_steps(*ours.back());
      if (i == 1) ggml_steps();
    }
  };
  turn(0);  // warms up, and makes all codes
  progress.advance(setup_rounds / 2 * work, where);
  for (std::int64_t round = 1; round <= rounds; round++) {
    turn(round);
    progress.advance(work, where);
  }
  for (const auto& one : ours) point.ours.push_back(std::move(one->measured()));
  if (ggml != nullptr) require_equal(point.dense().out, ggml_out);
  return point;
}

}  // namespace cli::kernel
