// kernelforge_cuda._virtual: Program, Schedule, Stats.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "machine.h"

namespace py = pybind11;

namespace kernelforge::vcuda {
namespace {

// {"address", "element_bytes", "dims", "strides", "box", "element_strides", "swizzle", "nan_fill"}
TensorMap tensor_map(const py::dict& d) {
  TensorMap m;
  auto fill = [&](const char* key, auto* out) {
    std::vector<int64_t> v = d[key].cast<std::vector<int64_t>>();
    if (v.size() != m.rank)
      throw py::value_error(std::string("tensor map: ") + key + " has " + std::to_string(v.size()) +
                            " entries, the rank is " + std::to_string(m.rank));
    for (size_t k = 0; k < v.size(); ++k) out[k] = static_cast<std::remove_reference_t<decltype(out[0])>>(v[k]);
  };
  m.element_bytes = d["element_bytes"].cast<uint32_t>();
  m.rank = static_cast<uint32_t>(py::len(d["dims"]));
  if (m.rank < 1 || m.rank > 5)
    throw py::value_error("tensor map: rank " + std::to_string(m.rank) + ", 1 to 5 are possible");
  m.address = d["address"].cast<uint64_t>();
  fill("dims", m.dims);
  fill("strides", m.strides);
  fill("box", m.box);
  fill("element_strides", m.element_strides);
  m.swizzle = d["swizzle"].cast<uint32_t>();
  m.nan_fill = d["nan_fill"].cast<bool>();
  uint32_t row = m.box[0] * m.element_bytes;
  const uint32_t widths[] = {0, 32, 64, 128};
  if (m.swizzle > 3) throw py::value_error("tensor map: swizzle " + std::to_string(m.swizzle) + " is not supported");
  if (m.swizzle && row > widths[m.swizzle])
    throw py::value_error("tensor map: rows of " + std::to_string(row) + " bytes with a swizzle of " +
                          std::to_string(widths[m.swizzle]));
  if (row % 16)
    throw py::value_error("tensor map: rows of " + std::to_string(row) + " bytes; a multiple of 16 is wanted");
  if (m.address % 16) throw py::value_error("tensor map: the tensor's address is not a multiple of 16");
  for (uint32_t k = 0; k < m.rank; ++k) {
    if (m.box[k] < 1 || m.box[k] > 256)
      throw py::value_error("tensor map: box of " + std::to_string(m.box[k]) + " elements, 1 to 256 are possible");
    if (m.element_strides[k] != 1) throw py::value_error("tensor map: element strides other than 1 are not supported");
    if (k && m.strides[k] % 16)
      throw py::value_error("tensor map: stride " + std::to_string(m.strides[k]) + " is not a multiple of 16 bytes");
  }
  return m;
}

Landing landing(const std::string& name) {
  if (name == "late") return Landing::kLate;
  if (name == "early") return Landing::kEarly;
  if (name == "random") return Landing::kRandom;
  throw py::value_error("landing '" + name + "'; 'late', 'early' or 'random' is wanted");
}

const Entry& find_entry(const Program& p, const std::string& name) {
  for (const Entry& e : p.entries)
    if (e.text.name == name) return e;
  throw py::key_error("no entry '" + name + "' in this PTX");
}

std::array<uint32_t, 3> three(const std::vector<int64_t>& v, const char* what) {
  if (v.empty() || v.size() > 3) throw py::value_error(std::string(what) + " takes 1 to 3 sizes");
  std::array<uint32_t, 3> out{1, 1, 1};
  for (size_t k = 0; k < v.size(); ++k) {
    if (v[k] < 1 || v[k] > 0x7fffffff) throw py::value_error(std::string(what) + " holds " + std::to_string(v[k]));
    out[k] = static_cast<uint32_t>(v[k]);
  }
  return out;
}

// args: int or float bits already packed as bytes (scalars and pointers), or a dict (tensor map).
Stats launch(const std::shared_ptr<Program>& program, const std::string& entry, const std::vector<int64_t>& grid,
             const std::vector<int64_t>& block, uint32_t shared_bytes, const std::vector<py::object>& args,
             const std::vector<std::tuple<uint64_t, uint64_t, bool>>& buffers, const Schedule& schedule, bool check,
             uint32_t threads, uint64_t max_instructions) {
  Launch l;
  l.program = program.get();
  l.entry = &find_entry(*program, entry);
  auto g = three(grid, "grid"), b = three(block, "block");
  std::copy(g.begin(), g.end(), l.grid);
  std::copy(b.begin(), b.end(), l.block);
  l.dynamic_shared = shared_bytes;
  const std::vector<Variable>& parameters = l.entry->text.parameters;
  if (args.size() != parameters.size())
    throw py::value_error("kernel " + entry + " takes " + std::to_string(parameters.size()) + " parameters, " +
                          std::to_string(args.size()) + " were given");
  l.params.assign(l.entry->text.parameter_bytes, 0);
  for (size_t k = 0; k < args.size(); ++k) {
    const Variable& p = parameters[k];
    if (py::isinstance<py::dict>(args[k])) {
      if (p.size != 128) throw py::type_error("parameter " + std::to_string(k) + " (" + p.name + ") is no tensor map");
      l.tensor_maps[p.offset] = tensor_map(args[k].cast<py::dict>());
    } else if (py::isinstance<py::bytes>(args[k])) {
      std::string raw = args[k].cast<py::bytes>();
      if (raw.size() != p.size)
        throw py::type_error("parameter " + std::to_string(k) + " (" + p.name + ") has " + std::to_string(p.size) +
                             " bytes, " + std::to_string(raw.size()) + " were given");
      std::memcpy(l.params.data() + p.offset, raw.data(), raw.size());
    } else if (py::isinstance<py::int_>(args[k])) {
      py::int_ v = args[k].cast<py::int_>();
      uint64_t bits = v < py::int_(0) ? static_cast<uint64_t>(v.cast<int64_t>()) : v.cast<uint64_t>();
      if (p.size > 8) throw py::type_error("parameter " + std::to_string(k) + " (" + p.name + ") wants a tensor map");
      std::memcpy(l.params.data() + p.offset, &bits, p.size);
    } else if (py::isinstance<py::float_>(args[k])) {
      double d = args[k].cast<double>();
      float f = static_cast<float>(d);
      if (p.size == 4)
        std::memcpy(l.params.data() + p.offset, &f, 4);
      else if (p.size == 8)
        std::memcpy(l.params.data() + p.offset, &d, 8);
      else
        throw py::type_error("parameter " + std::to_string(k) + " (" + p.name + ") has " + std::to_string(p.size) +
                             " bytes; pack the float as bytes");
    } else {
      throw py::type_error("parameter " + std::to_string(k) + " (" + p.name +
                           "): an int, float, bytes or dict is wanted");
    }
  }
  for (auto [address, bytes, writable] : buffers) l.buffers.push_back({address, bytes, writable, nullptr});
  l.schedule = schedule;
  l.check = check;
  l.max_instructions = max_instructions;
  py::gil_scoped_release release;
  return run_launch(l, threads);
}

py::list describe(const Program& p) {
  py::list out;
  for (const Entry& e : p.entries) {
    py::list parameters;
    for (const Variable& v : e.text.parameters) {
      py::dict d;
      d["name"] = v.name;
      d["offset"] = v.offset;
      d["size"] = v.size;
      parameters.append(d);
    }
    py::dict d;
    d["name"] = e.text.name;
    d["parameters"] = parameters;
    d["static_shared"] = e.text.static_shared;
    d["dynamic_shared"] = !p.module.dynamic_shared.empty();
    d["max_threads"] = e.text.max_threads;
    d["instructions"] = e.code.size();
    d["register_bytes"] = e.slots * kLanes * 4;
    d["local_bytes"] = e.text.local_bytes;
    out.append(d);
  }
  return out;
}

}  // namespace
}  // namespace kernelforge::vcuda

PYBIND11_MODULE(_virtual, m) {
  using namespace kernelforge::vcuda;
  m.doc() = "Virtual CUDA: runs PTX on the CPU, bit for bit, on adversarial schedules.";
  py::register_exception<PtxError>(m, "PtxError", PyExc_ValueError);
  py::register_exception<KernelFault>(m, "KernelFault", PyExc_RuntimeError);
  py::class_<Schedule>(m, "Schedule",
                       "seed; landing: 'late', 'early' or 'random'; preempt: chance per instruction that a warp pauses")
      .def(py::init([](uint64_t seed, const std::string& land, double preempt) {
             if (!(preempt >= 0 && preempt < 1))
               throw py::value_error("preempt " + std::to_string(preempt) + "; 0 <= preempt < 1 is wanted");
             return Schedule{seed, landing(land), preempt};
           }),
           py::arg("seed") = 0, py::arg("landing") = "late", py::arg("preempt") = 0.0);
  py::class_<Stats>(m, "Stats")
      .def_readonly("instructions", &Stats::instructions, "warp instructions executed")
      .def_readonly("ctas", &Stats::ctas)
      .def_readonly("landed", &Stats::landed, "asynchronous operations that landed")
      .def_readonly("seconds", &Stats::seconds, "time on this CPU, not a device's")
      .def_readonly("register_bytes", &Stats::register_bytes, "register file of one warp");
  py::class_<Program, std::shared_ptr<Program>>(m, "Program", "A PTX module, parsed and decoded once.")
      .def(py::init([](const std::string& ptx, bool rounded) { return load_program(ptx, rounded); }), py::arg("ptx"),
           py::arg("rounded") = false,
           "rounded: sums of matrix instructions may round, in binary32, ascending along k; else they must be exact")
      .def_property_readonly("entries", &describe)
      .def_property_readonly("target", [](const Program& p) { return p.module.target; })
      .def("launch", &launch, py::arg("entry"), py::arg("grid"), py::arg("block"), py::arg("shared_bytes"),
           py::arg("args"), py::arg("buffers"), py::arg("schedule") = Schedule{}, py::arg("check") = true,
           py::arg("threads") = 2, py::arg("max_instructions") = 0);
}
