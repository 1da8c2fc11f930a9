#include "ptx.h"

namespace kernelforge::vcuda {

std::string trim(const std::string& text) {
  size_t a = text.find_first_not_of(" \t\r\n"), b = text.find_last_not_of(" \t\r\n");
  return a == std::string::npos ? "" : text.substr(a, b - a + 1);
}

std::vector<std::string> split_arguments(const std::string& text) {
  std::vector<std::string> out;
  std::string part;
  int depth = 0;
  for (char c : text) {
    if (c == '{' || c == '[' || c == '(') ++depth;
    if (c == '}' || c == ']' || c == ')') --depth;
    if (c == ',' && depth == 0) {
      out.push_back(trim(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!trim(part).empty()) out.push_back(trim(part));
  return out;
}

std::vector<std::string> split_dots(const std::string& opcode) {
  std::vector<std::string> out;
  size_t begin = 0;
  for (size_t i = 0; i <= opcode.size(); ++i) {
    if (i == opcode.size() || opcode[i] == '.') {
      out.push_back(opcode.substr(begin, i - begin));
      begin = i + 1;
    }
  }
  return out;
}

int64_t EntryText::find_register(int scope, const std::string& name) const {
  for (int s = scope; s >= 0; s = scopes[static_cast<size_t>(s)].parent) {
    const Scope& sc = scopes[static_cast<size_t>(s)];
    auto it = sc.registers.find(name);
    if (it != sc.registers.end()) return it->second;
    for (const RegisterRange& r : sc.ranges) {
      if (name.size() <= r.prefix.size() || name.compare(0, r.prefix.size(), r.prefix) != 0) continue;
      std::string digits = name.substr(r.prefix.size());
      if (digits.find_first_not_of("0123456789") != std::string::npos) continue;
      uint64_t n = std::stoull(digits);
      if (n < r.count) return static_cast<int64_t>(r.base + n);
    }
  }
  return -1;
}

uint32_t EntryText::find_label(int scope, const std::string& name) const {
  for (int s = scope; s >= 0; s = scopes[static_cast<size_t>(s)].parent) {
    auto it = scopes[static_cast<size_t>(s)].labels.find(name);
    if (it != scopes[static_cast<size_t>(s)].labels.end()) return it->second;
  }
  throw PtxError("label '" + name + "' is not defined");
}

}  // namespace kernelforge::vcuda
