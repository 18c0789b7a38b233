// Atomic operations on global and shared memory. Threads switch only at barriers, so a plain read and write
// is atomic; the race check treats the access as atomic.
#pragma once

namespace argus::simt {

template <class T, class Update>
ARGUS_UNCHECKED T atomic_update(T* address, Update update) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0)
    fault("atomic operation on a misaligned address");
  access(address, sizeof(T), Kind::atomic);
  const T before = *address;
  *address = update(before);
  return before;
}

template <class T, class... Allowed>
concept OneOf = (std::is_same_v<T, Allowed> || ...);

template <class T>
concept Summable = OneOf<T, int, unsigned, unsigned long long, float, double, __half, __nv_bfloat16>;
template <class T>
concept Integer = OneOf<T, int, unsigned, long long, unsigned long long>;

}  // namespace argus::simt

template <argus::simt::Summable T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return argus::simt::atomic_update(address, [=](T before) ARGUS_UNCHECKED {
    if constexpr (std::is_same_v<T, int>)
      return static_cast<T>(static_cast<unsigned>(before) + unsigned(value));
    else
      return static_cast<T>(before + value);
  });
}
template <argus::simt::Integer T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return argus::simt::atomic_update(
      address, [=](T before) ARGUS_UNCHECKED { return before < value ? value : before; });
}
template <argus::simt::Integer T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return argus::simt::atomic_update(
      address, [=](T before) ARGUS_UNCHECKED { return value < before ? value : before; });
}
template <argus::simt::Integer T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  return argus::simt::atomic_update(address, [=](T before) ARGUS_UNCHECKED { return before & value; });
}
template <argus::simt::Integer T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return argus::simt::atomic_update(address, [=](T before) ARGUS_UNCHECKED { return before | value; });
}
template <argus::simt::OneOf<int, unsigned, unsigned long long, float> T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return argus::simt::atomic_update(address, [=](T) ARGUS_UNCHECKED { return value; });
}
template <argus::simt::OneOf<int, unsigned, unsigned long long, unsigned short> T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return argus::simt::atomic_update(
      address, [=](T before) ARGUS_UNCHECKED { return before == compare ? value : before; });
}
