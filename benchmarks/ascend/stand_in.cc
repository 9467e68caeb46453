// What the dry run puts before MindSpore's own: which chip there is, and how many cores; no attributes for operators of
// CANN that aren't there. Built with the string type that MindSpore was built with.
#include <dlfcn.h>

#include <cstdlib>
#include <string>

namespace {

const char *Setting(const char *name, const char *otherwise) {
  const char *value = std::getenv(name);
  return value != nullptr ? value : otherwise;
}

}  // namespace

extern "C" {

// mindspore::MsContext::set_ascend_soc_version(const std::string &)
void _ZN9mindspore9MsContext22set_ascend_soc_versionERKSs(void *context, const std::string &) {
  using Setter = void (*)(void *, const std::string &);
  static void *core = dlopen("libmindspore_core.so", RTLD_NOLOAD | RTLD_LAZY);
  static auto setter = reinterpret_cast<Setter>(dlsym(core, "_ZN9mindspore9MsContext22set_ascend_soc_versionERKSs"));
  setter(context, Setting("DRY_RUN_CHIP", "ascend910b"));
}

// mindspore::device::ascend::AclConverter::ConvertInputToAclAttr(...)
void _ZN9mindspore6device6ascend12AclConverter21ConvertInputToAclAttrERKSt6vectorIPNS_6kernel12KernelTensorESaIS6_EERKSs(
    void *, const void *, const void *) {}

// std::thread::hardware_concurrency()
unsigned _ZNSt6thread20hardware_concurrencyEv() { return std::atoi(Setting("DRY_RUN_CORES", "32")); }

}  // extern "C"
