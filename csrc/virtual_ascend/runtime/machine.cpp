#include "machine.h"

#include <cstring>

KF_TLS kf::Thread threadIdx;
KF_TLS kf::Thread blockDim;
KF_TLS int32_t block_idx;

namespace kf {
namespace {

constexpr std::size_t kScalarStack = 256 * 1024;

bool issues_in_order(int pipe) { return pipe == PIPE_S || pipe == PIPE_V || pipe == PIPE_M; }

}  // namespace

Machine*& Machine::current() {
  static KF_TLS Machine* machine = nullptr;
  return machine;
}

Machine::Machine(const std::vector<GlobalRegion>& regions, void (*entry)(void**), void** arguments,
                 const Options& options)
    : regions_(regions), entry_(entry), arguments_(arguments), options_(options) {
  for (int i = 0; i < kCores; i++) {
    cores_[i].index = i;
    cores_[i].scalar.reset(new Fiber(kScalarStack));
    if (i == 0) continue;
    cores_[i].ub.reset(new Space(std::string("UB of ") + kCoreNames[i], kUbBytes));
    cores_[i].ub->want_lanes();
  }
}

void Machine::run_block(int block) {
  block_ = block;
  random_ = Random(options_.seed * 1000003 + block);
  fault_.clear();
  uint32_t garbage = random_.next();
  for (Space* space : {&l1, &l0a, &l0b, &l0c}) space->poison(garbage, options_.check);
  for (auto& region : regions_) region.pages.clear();
  for (int i = 0; i < kAgents; i++) priorities_[i] = i;
  for (int i = kAgents - 1; i > 0; i--) std::swap(priorities_[i], priorities_[random_.below(i + 1)]);
  lane_epoch_ = 0;
  for (Core& core : cores_) {
    if (core.ub) core.ub->poison(garbage, options_.check);
    for (Pipe& pipe : core.pipes) pipe = Pipe{};
    core.flags.clear();
    for (auto& arrived : core.arrived) arrived.clear();
    for (Waiter& waiter : core.waiters) waiter = Waiter{};
    for (Mutex& buffer : core.buffers) buffer = Mutex{};
    core.blocked = Blocked::kNo;
    core.active = options_.kind == KernelKind::kMixed || core.index == (options_.kind == KernelKind::kCube ? 0 : 1);
    if (!core.active) continue;
    core.scalar->start([](void* self) { static_cast<Machine*>(self)->entry_(static_cast<Machine*>(self)->arguments_); },
                       this);
  }
  Machine* outer = current();
  current() = this;
  try {
    schedule();
    finish();
  } catch (...) {
    current() = outer;
    throw;
  }
  current() = outer;
}

// -- Scheduling ------------------------------------------------------------------------------------------------------

bool Machine::ready(const Core& core, int pipe) const {
  const auto& queue = core.pipes[pipe].queue;
  if (queue.empty()) return false;
  const Op& op = queue.front();
  switch (op.kind) {
    case OpKind::kWait: {
      auto flag = core.flags.find(op.a);
      return flag != core.flags.end() && flag->second.set;
    }
    case OpKind::kAwait:
      return !core.arrived[op.a].empty();
    case OpKind::kLock:
      return core.buffers[op.a].served == static_cast<uint32_t>(op.b);
    default:
      return true;
  }
}

bool Machine::scalar_ready(const Core& core) const {
  if (!core.active || core.scalar->finished()) return false;
  switch (core.blocked) {
    case Blocked::kNo:
      return true;
    case Blocked::kFlag: {
      auto flag = core.flags.find(core.blocked_key);
      return flag != core.flags.end() && flag->second.set;
    }
    case Blocked::kPipes:
      for (const Pipe& pipe : core.pipes) {
        if (!pipe.queue.empty()) return false;
      }
      return true;
    case Blocked::kQueue:
      return core.pipes[core.blocked_key].queue.size() < kQueueLimit;
  }
  return false;
}

void Machine::schedule() {
  int candidates[kAgents];
  for (;;) {
    int pipes = 0, scalars = 0, scalar_candidates[kCores];
    for (int agent : priorities_) {
      Core& core = cores_[agent / kPipes];
      if (!core.active) continue;
      int pipe = agent % kPipes;
      if (pipe == PIPE_S) {
        if (scalar_ready(core)) scalar_candidates[scalars++] = core.index;
      } else if (ready(core, pipe)) {
        candidates[pipes++] = agent;
      }
    }
    if (pipes + scalars == 0) break;
    bool scalar = false;
    int chosen = 0;
    switch (options_.schedule) {
      case Schedule::kEarly:  // whatever is issued happens at once
        scalar = pipes == 0;
        break;
      case Schedule::kLate:  // an operation happens when nothing else can go on
        scalar = scalars > 0;
        break;
      case Schedule::kRandom:
        chosen = static_cast<int>(random_.below(pipes + scalars));
        scalar = chosen >= pipes;
        if (scalar) chosen -= pipes;
        break;
    }
    if (scalar) {
      resume_scalar(cores_[scalar_candidates[chosen]]);
    } else {
      execute(cores_[candidates[chosen] / kPipes], candidates[chosen] % kPipes);
    }
  }
  for (const Core& core : cores_) {
    bool stuck = core.active && !core.scalar->finished();
    for (const Pipe& pipe : core.pipes) stuck |= !pipe.queue.empty();
    if (stuck) throw Fault("deadlock in block " + std::to_string(block_) + ":" + blocked_report());
  }
}

void Machine::resume_scalar(Core& core) {
  if (core.blocked == Blocked::kFlag) {
    Flag& flag = core.flags[core.blocked_key];
    flag.set = false;
    join(core.pipes[PIPE_S].known, flag.clock);
  } else if (core.blocked == Blocked::kPipes) {
    for (const Pipe& pipe : core.pipes) join(core.pipes[PIPE_S].known, pipe.done);
  }
  core.blocked = Blocked::kNo;
  running_ = &core;
  block_idx = block_;
  core.scalar->resume();
  running_ = nullptr;
  if (!fault_.empty()) throw Fault(fault_);
}

void Machine::execute(Core& core, int pipe_index) {
  Pipe& pipe = core.pipes[pipe_index];
  Op op = std::move(pipe.queue.front());
  pipe.queue.pop_front();
  running_ = &core;
  block_idx = block_;
  int agent = core.index * kPipes + pipe_index;
  if (options_.check) {
    step_.agent = agent;
    step_.time = ++pipe.time;
    step_.before = pipe.known;
    join(step_.before, op.issued);
    pipe.history.push_back(op.where);
    pipe.names.push_back(op.name);
  }
  switch (op.kind) {
    case OpKind::kWork:
      current_op_ = std::move(op);
      current_op_.work();
      current_op_.work = nullptr;
      break;
    case OpKind::kSet:
      set_flag(core, op.a, op.where);
      break;
    case OpKind::kWait: {
      Flag& flag = core.flags[op.a];
      flag.set = false;
      if (options_.check) join(step_.before, flag.clock);
      break;
    }
    case OpKind::kArrive: {
      auto& arrived = cores_[op.b].arrived[op.a];
      if (arrived.size() >= kIntraLimit) {
        fail("cross-core flag " + std::to_string(op.a) + " of " + kCoreNames[op.b] + " overflows at " +
             describe(op.where) + ": a wait is missing");
      }
      arrived.emplace_back();
      break;
    }
    case OpKind::kAwait:
      if (options_.check) {
        one_waiter(core, agent, op);
        join(step_.before, core.arrived[op.a].front());
      }
      core.arrived[op.a].pop_front();
      break;
    case OpKind::kLock:
      if (options_.check) join(step_.before, core.buffers[op.a].clock);
      break;
    case OpKind::kUnlock:
      core.buffers[op.a].served++;
      break;
    case OpKind::kBarrier:
      if (options_.check) join(step_.before, pipe.done);
      break;
  }
  running_ = nullptr;
  if (!options_.check) return;
  join(pipe.done, step_.before);
  pipe.done[agent] = step_.time;
  bool waits = op.kind == OpKind::kWait || op.kind == OpKind::kAwait || op.kind == OpKind::kLock;
  if (issues_in_order(pipe_index) || op.kind == OpKind::kBarrier) {
    pipe.known = pipe.done;
  } else if (waits) {
    join(pipe.known, step_.before);
  }
  if (op.kind == OpKind::kSet) core.flags[op.a].clock = pipe.done;
  if (op.kind == OpKind::kArrive) cores_[op.b].arrived[op.a].back() = pipe.done;
  if (op.kind == OpKind::kUnlock) join(core.buffers[op.a].clock, pipe.done);
}

/// Of two pipes that wait for one flag, whichever is first takes an arrival that was meant for the other.
void Machine::one_waiter(Core& core, int agent, const Op& op) {
  Waiter& last = core.waiters[op.a];
  if (last.time > 0 && last.agent != agent && step_.before[last.agent] < last.time) {
    throw Fault("two pipes wait for cross-core flag " + std::to_string(op.a) + " of " + kCoreNames[core.index] + ": " +
                step_text(agent, step_.time) + " and " + step_text(last.agent, last.time) +
                ", and nothing orders the two: either may take the other's arrival");
  }
  last = {agent, step_.time};
}

void Machine::finish() {
  for (const Core& core : cores_) {
    for (const auto& [key, flag] : core.flags) {
      if (flag.set) {
        throw Fault("flag " + flag_name(key) + " of " + kCoreNames[core.index] + ", set at " + describe(flag.where) +
                    ", is never waited for");
      }
    }
    for (int id = 0; id < 2 * kIntraFlags; id++) {
      if (!core.arrived[id].empty()) {
        throw Fault("cross-core flag " + std::to_string(id) + " of " + kCoreNames[core.index] + " has " +
                    std::to_string(core.arrived[id].size()) + " arrivals that nothing waits for");
      }
    }
    for (int id = 0; id < kBuffers; id++) {
      if (core.buffers[id].served != core.buffers[id].tickets) {
        throw Fault("buffer lock " + std::to_string(id) + " of " + kCoreNames[core.index] + " is never released");
      }
    }
  }
}

// -- The scalar program's side
// -----------------------------------------------------------------------------------------

void Machine::issue(int pipe, Op op) {
  Core& core = *running_;
  if (options_.check) {
    Pipe& scalar = core.pipes[PIPE_S];
    op.issued = scalar.known;
    op.issued[core.index * kPipes + PIPE_S] = scalar.time;
  }
  if (core.pipes[pipe].queue.size() >= kQueueLimit) wait_scalar(Blocked::kQueue, pipe, op.where);
  core.pipes[pipe].queue.push_back(std::move(op));
  if (options_.schedule != Schedule::kLate) core.scalar->pause();
}

void Machine::set_flag(Core& core, int key, Where where) {
  Flag& flag = core.flags[key];
  if (flag.set) {
    fail("flag " + flag_name(key) + " of " + kCoreNames[core.index] + " is set at " + describe(where) +
         " but still set from " + describe(flag.where) + ": a wait is missing");
  }
  flag = Flag{true, {}, where};
}

void Machine::set_from_scalar(int key, Where where) {
  Core& core = *running_;
  set_flag(core, key, where);
  if (!options_.check) return;
  begin_scalar_step();
  core.flags[key].clock = step_.before;
  core.flags[key].clock[step_.agent] = step_.time;
}

void Machine::wait_scalar(Blocked what, int key, Where where) {
  Core& core = *running_;
  core.blocked = what;
  core.blocked_key = key;
  core.blocked_where = where;
  core.scalar->pause();
}

void Machine::fail(const std::string& text) {
  if (Fiber::current() == nullptr) throw Fault(text);
  // Never unwinds generated code: its fiber is left where it is.
  fault_ = text;
  for (;;) Fiber::current()->pause();
}

// -- Checked memory
// ----------------------------------------------------------------------------------------------------

uint8_t* Machine::ub_base() { return (running_->index == 0 ? cores_[1] : *running_).ub->base(); }

uint8_t* Machine::on_chip(Space& space, int64_t offset, std::size_t bytes, bool write, bool need_written) {
  if (offset < 0 || static_cast<std::size_t>(offset) + bytes > space.size()) {
    fail(std::string(current_op_.name) + " at " + describe(current_op_.where) + (write ? " writes" : " reads") +
         " bytes " + std::to_string(offset) + " to " + std::to_string(offset + static_cast<int64_t>(bytes)) + " of " +
         space.name() + ", which has " + std::to_string(space.size()));
  }
  if (options_.check && bytes > 0) {
    Conflict conflict = space.access(offset, bytes, step_, write);
    if (conflict.found) fail(conflict_text(space.name() + " near byte " + std::to_string(offset), conflict, write));
    if (write) {
      space.mark_written(offset, bytes);
    } else if (need_written) {
      int64_t hole = space.first_unwritten(offset, bytes);
      if (hole >= 0) {
        fail(std::string(current_op_.name) + " at " + describe(current_op_.where) + " reads byte " +
             std::to_string(hole) + " of " + space.name() + ", which nothing has written");
      }
    }
  }
  return space.base() + offset;
}

GlobalRegion* Machine::find_region(const void* address) {
  for (auto& region : regions_) {
    if (region.contains(address)) return &region;
  }
  return nullptr;
}

uint8_t* Machine::global(const void* address, std::size_t bytes, bool write) {
  GlobalRegion* region = find_region(address);
  auto* at = static_cast<uint8_t*>(const_cast<void*>(address));
  if (bytes == 0) return at;
  if (region == nullptr || !region->contains(at + bytes - 1)) {
    std::string text = std::string(current_op_.name) + " at " + describe(current_op_.where) +
                       (write ? " writes " : " reads ") + std::to_string(bytes) + " bytes of global memory ";
    for (const auto& other : regions_) {
      int64_t distance = at - other.base;
      if (distance >= -4096 && distance < static_cast<int64_t>(other.bytes) + (1 << 20)) {
        fail(text + "from byte " + std::to_string(distance) + " of " + other.name + ", which has " +
             std::to_string(other.bytes));
      }
    }
    fail(text + "outside every argument");
  }
  if (options_.check && region->tracked) {
    Conflict conflict = region->access(at - region->base, bytes, step_, write);
    if (conflict.found) {
      fail(conflict_text(region->name + " near byte " + std::to_string(at - region->base), conflict, write));
    }
  }
  if (region->writers != nullptr && !in_atomic) {
    int other = region->other_writer(at - region->base, bytes, block_, write);
    if (other >= 0) fail(blocks_text(region->name + " near byte " + std::to_string(at - region->base), other, write));
  }
  return at;
}

void Machine::begin_scalar_step() {
  Core& core = *running_;
  Pipe& scalar = core.pipes[PIPE_S];
  step_.agent = core.index * kPipes + PIPE_S;
  step_.time = ++scalar.time;
  scalar.known[step_.agent] = step_.time;
  step_.before = scalar.known;
}

void Machine::scalar_access(const void* address, std::size_t bytes, bool write) {
  if (options_.check) begin_scalar_step();
  global(address, bytes, write);
}

}  // namespace kf
