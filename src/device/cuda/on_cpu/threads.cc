#include "threads.h"

#include <boost/context/fiber.hpp>
#include <boost/context/fixedsize_stack.hpp>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <vector>

EmulatedIndex threadIdx, blockIdx, blockDim, gridDim;

namespace adamas::on_cpu {

alignas(128) unsigned char shared[most_shared];

namespace {

using boost::context::fiber;
constexpr size_t stack_bytes = 128 * 1024;

// Those that meet; with each meeting the number goes up.
struct Meeting {
  int expected = 0, arrived = 0;
  unsigned number = 0;
  void arrive() {
    if (++arrived >= expected) arrived = 0, number++;
  }
  void leave() {
    if (--expected > 0 && arrived >= expected) arrived = 0, number++;
  }
};

// Values stay until the meeting after the next one: nobody gets there before all have read them.
struct Warp {
  Meeting meeting;
  alignas(16) unsigned char slots[2][warp_lanes][slot_bytes];
};

struct Thread {
  fiber it, scheduler;
  EmulatedIndex index;
  Warp* warp = nullptr;
  const unsigned* waits_for = nullptr;  // a number that has to change
  unsigned seen = 0;
};

std::deque<Thread> threads;
std::vector<Warp> warps;
Meeting of_block;
bool any_now, any_before;
Thread* running;

// Stacks are kept from one thread to the next.
struct Stacks {
  boost::context::stack_context allocate() {
    if (free.empty()) return boost::context::fixedsize_stack(stack_bytes).allocate();
    const boost::context::stack_context last = free.back();
    free.pop_back();
    return last;
  }
  void deallocate(boost::context::stack_context& stack) { free.push_back(stack); }
  static std::vector<boost::context::stack_context> free;
};
std::vector<boost::context::stack_context> Stacks::free;

void wait_for(Meeting& meeting) {
  const unsigned seen = meeting.number;
  meeting.arrive();
  if (meeting.number != seen) return;
  running->waits_for = &meeting.number;
  running->seen = seen;
  running->scheduler = std::move(running->scheduler).resume();
}

void run_block(const std::function<void()>& body) {
  std::memset(shared, 0xCD, sizeof shared);
  const unsigned count = blockDim.x * blockDim.y * blockDim.z;
  threads.clear();
  warps.assign((count + warp_lanes - 1) / warp_lanes, Warp{});
  of_block = {int(count), 0, 0};
  any_now = false;
  for (unsigned i = 0; i < count; i++) {
    Thread& thread = threads.emplace_back();
    thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    thread.warp = &warps[i / warp_lanes];
    thread.warp->meeting.expected++;
    thread.it = fiber(std::allocator_arg, Stacks(), [&body, &thread](fiber&& scheduler) {
      thread.scheduler = std::move(scheduler);
      body();
      thread.warp->meeting.leave();
      of_block.leave();
      return std::move(thread.scheduler);
    });
  }
  for (unsigned left = count; left > 0;) {
    bool went_on = false;
    for (Thread& thread : threads) {
      if (!thread.it || (thread.waits_for != nullptr && *thread.waits_for == thread.seen)) continue;
      thread.waits_for = nullptr;
      running = &thread;
      threadIdx = thread.index;
      thread.it = std::move(thread.it).resume();
      went_on = true;
      if (!thread.it) left--;
    }
    if (went_on) continue;
    std::fprintf(stderr, "threads of a block wait for each other for ever\n");
    std::abort();
  }
}

}  // namespace

void run_grid(EmulatedIndex grid, EmulatedIndex block, const std::function<void()>& thread) {
  gridDim = grid, blockDim = block;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        blockIdx = {x, y, z};
        run_block(thread);
      }
}

bool wait_for_block(bool any) {
  any_now |= any;
  if (of_block.arrived + 1 == of_block.expected) any_before = any_now, any_now = false;
  wait_for(of_block);
  return any_before;
}

const unsigned char* wait_for_warp(const void* own, size_t bytes) {
  Warp& warp = *running->warp;
  auto& slots = warp.slots[warp.meeting.number % 2];
  std::memcpy(slots[lane_index()], own, bytes);
  wait_for(warp.meeting);
  return slots[0];
}

}  // namespace adamas::on_cpu
