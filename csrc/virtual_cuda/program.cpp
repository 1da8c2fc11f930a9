#include "program.h"

#include "decode.h"

namespace kernelforge::vcuda {

std::string Program::where(const Entry& entry, uint32_t pc) const {
  if (pc >= entry.code.size()) return "the end of the kernel";
  const Statement& s = entry.text.statements[entry.code[pc].statement];
  std::string out =
      "`" + (s.text.size() > 160 ? s.text.substr(0, 157) + "..." : s.text) + "` (PTX line " + std::to_string(s.line);
  if (s.source_file) {
    auto f = module.files.find(s.source_file);
    out += ", " +
           (f == module.files.end() ? std::string("file ") + std::to_string(s.source_file)
                                    : f->second.substr(f->second.rfind('/') + 1)) +
           ":" + std::to_string(s.source_line);
  }
  return out + ")";
}

std::shared_ptr<Program> load_program(const std::string& ptx, bool rounded) {
  auto program = std::make_shared<Program>();
  program->rounded = rounded;
  program->module = parse_module(ptx);
  const std::string& target = program->module.target;
  if (target.rfind("sm_", 0) == 0) program->sm = std::stoi(target.substr(3));
  program->entries.reserve(program->module.entries.size());
  for (EntryText& text : program->module.entries) {
    program->entries.emplace_back();
    Entry& entry = program->entries.back();
    entry.text = text;
    Decoder(*program, entry).run();
  }
  return program;
}

}  // namespace kernelforge::vcuda
