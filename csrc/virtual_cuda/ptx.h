// The text of a PTX module, cut into entries and statements. No meaning yet: decode.h gives it.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace kernelforge::vcuda {

enum class RegClass : uint8_t { kPred, k16, k32, k64, k128 };

// A PTX text that cannot be read, or an instruction the executor does not know.
struct PtxError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A run of registers declared together: `.reg .b32 %r<2108>;` or one plain name (count == 0).
struct RegisterRange {
  std::string prefix;
  uint32_t base;
  uint32_t count;
};

// `{ }` in a body: inline assembly redeclares registers and labels inside one.
struct Scope {
  int parent = -1;
  std::unordered_map<std::string, uint32_t> registers;
  std::vector<RegisterRange> ranges;
  std::unordered_map<std::string, uint32_t> labels;  // name -> index of the next statement
  std::unordered_map<std::string, std::vector<std::string>> branch_targets;
};

struct Statement {
  std::string text;                    // as written, blanks collapsed
  std::string opcode;                  // with all modifiers
  std::vector<std::string> arguments;  // split at top-level commas
  std::string guard;                   // predicate name, empty without a guard
  bool guard_negated = false;
  int scope = 0;
  uint32_t line = 0;    // line in the PTX text, from 1
  int source_file = 0;  // .loc, 0 when none
  uint32_t source_line = 0;
};

// A named piece of memory: shared, local, global/const variables and kernel parameters.
struct Variable {
  std::string name;
  uint64_t offset = 0;
  uint64_t size = 0;
  uint32_t align = 1;
};

struct EntryText {
  std::string name;
  std::vector<Variable> parameters;
  uint64_t parameter_bytes = 0;
  uint32_t max_threads = 0;  // .maxntid product, 0 when absent
  std::vector<Scope> scopes;
  std::vector<RegClass> registers;
  std::vector<Statement> statements;
  std::vector<Variable> shared;  // static, offsets from the first static byte
  uint64_t static_shared = 0;
  std::vector<Variable> local;  // per-thread, offsets in the thread's frame
  uint64_t local_bytes = 0;

  // Register id of `name` seen from `scope`, or -1.
  int64_t find_register(int scope, const std::string& name) const;
  // Statement index of a label seen from `scope`; throws PtxError when missing.
  uint32_t find_label(int scope, const std::string& name) const;
};

struct Module {
  std::string target;  // sm_80, sm_90a, ...
  std::vector<EntryText> entries;
  std::string dynamic_shared;           // name of the `.extern .shared` array
  std::vector<Variable> static_shared;  // module-scope shared variables
  uint64_t static_shared_bytes = 0;
  std::vector<Variable> globals;  // .global and .const, offsets in global_image
  std::vector<uint8_t> global_image;
  std::map<int, std::string> files;  // .file directives
};

Module parse_module(const std::string& text);

// "a, {b, c}, [d, {e}]" -> three parts.
std::vector<std::string> split_arguments(const std::string& text);
std::vector<std::string> split_dots(const std::string& opcode);
std::string trim(const std::string& text);

}  // namespace kernelforge::vcuda
