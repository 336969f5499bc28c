// A registry that registers nothing.
#pragma once
#include <dmlc/logging.h>

#include <string>

namespace tvm {
namespace runtime {
struct Nothing {
  template <class T> operator T() const { return T(); }
};
struct TVMArgs {
  Nothing operator[](int) const { return {}; }
};
struct TVMRetValue {
  template <class T> TVMRetValue &operator=(const T &) { return *this; }
};
struct Registry {
  template <class F> Registry &set_body(F) { return *this; }
};
}  // namespace runtime
}  // namespace tvm

#define REGISTRY_NAME(line) REGISTRY_NAME_AT(line)
#define REGISTRY_NAME_AT(line) registered_##line
#define TVM_REGISTER_GLOBAL(name) static ::tvm::runtime::Registry REGISTRY_NAME(__COUNTER__) = ::tvm::runtime::Registry()
