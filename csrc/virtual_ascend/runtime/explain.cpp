// The words of faults: which operation, of which pipe, at which line of the generated source.
#include <cstring>

#include "machine.h"

namespace kf {

std::string flag_name(int key) {
  return std::string(kPipeNames[key / kEvents / kPipes]) + " -> " + kPipeNames[key / kEvents % kPipes] + " event " +
         std::to_string(key % kEvents);
}

// ------------------------------------------------------------------------------------------------------

std::string Machine::describe(const Where& where) const {
  if (where.file == nullptr) return "the start";
  const char* slash = std::strrchr(where.file, '/');
  return std::string(slash ? slash + 1 : where.file) + ":" + std::to_string(where.line);
}

std::string Machine::agent_name(int agent) const {
  return std::string(kCoreNames[agent / kPipes]) + " pipe " + kPipeNames[agent % kPipes];
}

std::string Machine::step_text(int agent, uint32_t time) const {
  const Pipe& pipe = cores_[agent / kPipes].pipes[agent % kPipes];
  if (agent % kPipes == PIPE_S || time == 0 || time > pipe.history.size()) return agent_name(agent);
  return std::string(pipe.names[time - 1]) + " at " + describe(pipe.history[time - 1]) + " (" + agent_name(agent) + ")";
}

std::string Machine::conflict_text(const std::string& place, const Conflict& conflict, bool write) const {
  return "race on " + place + ": " + step_text(step_.agent, step_.time) + (write ? " writes" : " reads") + " what " +
         step_text(conflict.agent, conflict.time) + (conflict.earlier_was_write ? " wrote" : " read") +
         ", and no wait orders the two";
}

std::string Machine::blocks_text(const std::string& place, int other, bool write) const {
  return "race on " + place + ": " + step_text(step_.agent, step_.time) + (write ? " writes" : " reads") +
         " what block " + std::to_string(other) + " wrote, and nothing orders the blocks";
}

std::string Machine::blocked_report() const {
  std::string text;
  for (const Core& core : cores_) {
    if (!core.active) continue;
    const std::string name = std::string("\n  ") + kCoreNames[core.index];
    if (!core.scalar->finished()) {
      text += name + " scalar program at " + describe(core.blocked_where) + " waits for ";
      if (core.blocked == Blocked::kFlag) text += "flag " + flag_name(core.blocked_key);
      if (core.blocked == Blocked::kPipes) text += "all its pipes";
      if (core.blocked == Blocked::kQueue) text += std::string("room in pipe ") + kPipeNames[core.blocked_key];
    }
    for (int pipe = 0; pipe < kPipes; pipe++) {
      if (core.pipes[pipe].queue.empty()) continue;
      const Op& op = core.pipes[pipe].queue.front();
      text += name + " pipe " + kPipeNames[pipe] + " at " + describe(op.where) + " waits for ";
      if (op.kind == OpKind::kWait) text += "flag " + flag_name(op.a);
      if (op.kind == OpKind::kAwait) text += "cross-core flag " + std::to_string(op.a);
      if (op.kind == OpKind::kLock) text += "buffer lock " + std::to_string(op.a);
      text += " (" + std::to_string(core.pipes[pipe].queue.size()) + " operations behind it)";
    }
  }
  return text;
}

}  // namespace kf
