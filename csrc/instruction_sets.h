// Which kernels this processor can run.
#pragma once

#include "kernels.h"

namespace berthead {

// The kernels that this processor can run, the best last.
class KernelList {
 public:
  // Kernels that are not in this build have a null address.
  void Add(const Kernels* kernels) {
    if (kernels) kernels_[count_++] = kernels;
  }
  const Kernels* const* begin() const { return kernels_; }
  const Kernels* const* end() const { return kernels_ + count_; }

 private:
  const Kernels* kernels_[8] = {};
  int count_ = 0;
};
const KernelList& UsableKernels();

// The kernels of this name that compute this precision. Null: this processor has none.
const Kernels* FindKernels(const char* name, int precision);

}  // namespace berthead
