// What a test that runs without a model needs of the engine: its functions, and a back end of a library.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#include "ggml-backend-impl.h"
#include "ggml.h"
#include "symbol.h"

struct Ggml {
  explicit Ggml(const std::string& folder) : base(folder + "/libggml-base.so") {}
  const Library base;

  decltype(ggml_init)* init = SYMBOL(base, ggml_init);
  decltype(ggml_free)* free = SYMBOL(base, ggml_free);
  decltype(ggml_new_tensor_4d)* tensor = SYMBOL(base, ggml_new_tensor_4d);
  decltype(ggml_view_4d)* view = SYMBOL(base, ggml_view_4d);
  decltype(ggml_permute)* permute = SYMBOL(base, ggml_permute);
  decltype(ggml_reshape_2d)* reshape = SYMBOL(base, ggml_reshape_2d);
  decltype(ggml_set_name)* set_name = SYMBOL(base, ggml_set_name);
  decltype(ggml_set_rows)* set_rows = SYMBOL(base, ggml_set_rows);
  decltype(ggml_flash_attn_ext)* attention = SYMBOL(base, ggml_flash_attn_ext);
  decltype(ggml_flash_attn_ext_add_sinks)* add_sinks = SYMBOL(base, ggml_flash_attn_ext_add_sinks);
  decltype(ggml_new_graph)* new_graph = SYMBOL(base, ggml_new_graph);
  decltype(ggml_build_forward_expand)* expand = SYMBOL(base, ggml_build_forward_expand);
  decltype(ggml_quantize_chunk)* convert = SYMBOL(base, ggml_quantize_chunk);
  decltype(ggml_fp32_to_fp16)* f16_bits = SYMBOL(base, ggml_fp32_to_fp16);
  decltype(ggml_type_name)* type_name = SYMBOL(base, ggml_type_name);
  decltype(ggml_row_size)* row_size = SYMBOL(base, ggml_row_size);
  decltype(ggml_nbytes)* nbytes = SYMBOL(base, ggml_nbytes);
  decltype(ggml_tensor_overhead)* overhead = SYMBOL(base, ggml_tensor_overhead);
  decltype(ggml_graph_overhead)* graph_overhead = SYMBOL(base, ggml_graph_overhead);
  decltype(ggml_backend_cpu_buffer_type)* cpu_buffer_type = SYMBOL(base, ggml_backend_cpu_buffer_type);
  decltype(ggml_backend_alloc_ctx_tensors_from_buft)* allocate = SYMBOL(base, ggml_backend_alloc_ctx_tensors_from_buft);
  decltype(ggml_backend_buffer_free)* free_buffer = SYMBOL(base, ggml_backend_buffer_free);
  decltype(ggml_backend_tensor_set)* set = SYMBOL(base, ggml_backend_tensor_set);
  decltype(ggml_backend_graph_compute)* compute = SYMBOL(base, ggml_backend_graph_compute);
  decltype(ggml_backend_dev_init)* dev_init = SYMBOL(base, ggml_backend_dev_init);
  decltype(ggml_set_input)* set_input = SYMBOL(base, ggml_set_input);
  decltype(ggml_rope_inplace)* rope_inplace = SYMBOL(base, ggml_rope_inplace);
  decltype(ggml_backend_supports_op)* supports = SYMBOL(base, ggml_backend_supports_op);
  decltype(ggml_graph_n_nodes)* n_nodes = SYMBOL(base, ggml_graph_n_nodes);
  decltype(ggml_graph_node)* node = SYMBOL(base, ggml_graph_node);
  decltype(ggml_backend_sched_new)* sched_new = SYMBOL(base, ggml_backend_sched_new);
  decltype(ggml_backend_sched_free)* sched_free = SYMBOL(base, ggml_backend_sched_free);
  decltype(ggml_backend_sched_reset)* sched_reset = SYMBOL(base, ggml_backend_sched_reset);
  decltype(ggml_backend_sched_alloc_graph)* sched_alloc = SYMBOL(base, ggml_backend_sched_alloc_graph);
  decltype(ggml_backend_sched_graph_compute)* sched_compute = SYMBOL(base, ggml_backend_sched_graph_compute);
  decltype(ggml_backend_sched_get_tensor_backend)* backend_of = SYMBOL(base, ggml_backend_sched_get_tensor_backend);
};

inline ggml_backend_t start(const Ggml& g, const Library& library) {
  ggml_backend_reg_t reg = library.symbol<ggml_backend_reg*()>("ggml_backend_init")();
  if (!reg) {
    std::puts("FAILED  the back end refused");
    std::exit(1);
  }
  ggml_backend_t backend = g.dev_init(reg->iface.get_device(reg, 0), nullptr);
  auto set_threads =
      reinterpret_cast<void (*)(ggml_backend_t, int)>(reg->iface.get_proc_address(reg, "ggml_backend_set_n_threads"));
  if (set_threads) set_threads(backend, 2);
  return backend;
}

inline int failures = 0;

inline void check(bool truth, const std::string& sentence) {
  std::printf("%s%s\n", truth ? "ok    " : "FAILED  ", sentence.c_str());
  failures += !truth;
}
