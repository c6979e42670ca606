#include "hooks.h"

#include <mutex>
#include <unordered_map>

namespace adamas_ggml {
namespace {

struct Hooked {
  ggml_backend_buffer_i theirs;  // the functions that ours stand before
  Changed changed;
};

// Never destroyed: buffers are freed after our library's destructors have run.
struct Hooks {
  std::mutex mutex;
  std::unordered_map<ggml_backend_buffer_t, Hooked> buffers;
};
Hooks& hooks() {
  static Hooks* const all = new Hooks;
  return *all;
}

// Tells of the change, and gives the functions that make it.
ggml_backend_buffer_i theirs_noting(ggml_backend_buffer_t buffer, const ggml_tensor* tensor) {
  Hooked hooked;
  {
    const std::lock_guard lock(hooks().mutex);
    hooked = hooks().buffers.at(buffer);
  }
  hooked.changed(buffer, tensor);
  return hooked.theirs;
}

void noting_set_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, size_t offset, size_t size) {
  theirs_noting(buffer, tensor).set_tensor(buffer, tensor, data, offset, size);
}
void noting_memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, uint8_t value, size_t offset, size_t size) {
  theirs_noting(buffer, tensor).memset_tensor(buffer, tensor, value, offset, size);
}
void noting_set_tensor_2d(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data, size_t offset, size_t size,
                          size_t copies, size_t stride_tensor, size_t stride_data) {
  theirs_noting(buffer, tensor).set_tensor_2d(buffer, tensor, data, offset, size, copies, stride_tensor, stride_data);
}
bool noting_cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor* from, ggml_tensor* to) {
  return theirs_noting(buffer, to).cpy_tensor(buffer, from, to);
}
void noting_clear(ggml_backend_buffer_t buffer, uint8_t value) { theirs_noting(buffer, nullptr).clear(buffer, value); }

}  // namespace

bool hook_buffer(ggml_backend_buffer_t buffer, Changed changed) {
  if (!buffer || !buffer->iface.set_tensor || buffer->iface.set_tensor == noting_set_tensor) return false;
  const std::lock_guard lock(hooks().mutex);
  hooks().buffers[buffer] = {buffer->iface, changed};
  buffer->iface.set_tensor = noting_set_tensor;
  if (buffer->iface.memset_tensor) buffer->iface.memset_tensor = noting_memset_tensor;
  if (buffer->iface.set_tensor_2d) buffer->iface.set_tensor_2d = noting_set_tensor_2d;
  if (buffer->iface.cpy_tensor) buffer->iface.cpy_tensor = noting_cpy_tensor;
  if (buffer->iface.clear) buffer->iface.clear = noting_clear;
  return true;
}

}  // namespace adamas_ggml
