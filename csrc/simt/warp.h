// Warp collectives: shuffles, votes, matches and reductions. Every lane passes its value; once all lanes of
// the mask have arrived, one of them computes the results of all. As on the device, collectives do not order
// memory accesses.
#pragma once

namespace argus::simt {

struct Exchange {
  uint64_t value, result;
  int operand, width;
};

void combine_shuffle_index(void* const* payloads, unsigned mask);
void combine_shuffle_up(void* const* payloads, unsigned mask);
void combine_shuffle_down(void* const* payloads, unsigned mask);
void combine_shuffle_xor(void* const* payloads, unsigned mask);
void combine_ballot(void* const* payloads, unsigned mask);
void combine_match(void* const* payloads, unsigned mask);

// Copies of the bits are not instrumented: other lanes write into this lane's stack.
template <class T>
ARGUS_UNCHECKED T shuffle(const char* name, Combine combine, unsigned mask, T value, int operand, int width,
                          Site site) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  if (width < 1 || width > kLanes || (width & (width - 1)) != 0) {
    fault(std::string(name) + " of width " + std::to_string(width) + ", expected a power of two up to 32");
  }
  Exchange own{0, 0, operand, width};
  std::memcpy(&own.value, &value, sizeof(T));
  warp_collective(name, mask, &own, combine, false, site);
  std::memcpy(&value, &own.result, sizeof(T));
  return value;
}

template <class T>
ARGUS_UNCHECKED unsigned collect(const char* name, Combine combine, unsigned mask, T value, Site site) {
  static_assert(sizeof(T) <= 8);
  Exchange own{0, 0, 0, kLanes};
  std::memcpy(&own.value, &value, sizeof(T));
  warp_collective(name, mask, &own, combine, false, site);
  return static_cast<unsigned>(own.result);
}

template <class T, class Operation>
ARGUS_UNCHECKED T reduce(const char* name, unsigned mask, T value, Operation, Site site) {
  struct Value {
    T given, result;
  } own{value, value};
  const auto combine = [](void* const* payloads, unsigned lanes) ARGUS_UNCHECKED {
    T total{};
    bool first = true;
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((lanes >> lane & 1u) == 0) continue;
      const T given = static_cast<Value*>(payloads[lane])->given;
      total = first ? given : Operation{}(total, given);
      first = false;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((lanes >> lane & 1u) != 0) static_cast<Value*>(payloads[lane])->result = total;
    }
  };
  warp_collective(name, mask, &own, combine, false, site);
  return own.result;
}

struct Add {
  template <class T>
  ARGUS_UNCHECKED T operator()(T a, T b) const {
    return static_cast<T>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
  }
};
struct Min {
  template <class T>
  ARGUS_UNCHECKED T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Max {
  template <class T>
  ARGUS_UNCHECKED T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

}  // namespace argus::simt

#define ARGUS_SITE argus::simt::Site site = argus::simt::Site::current()

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, ARGUS_SITE) {
  return argus::simt::shuffle("__shfl_sync", argus::simt::combine_shuffle_index, mask, value, lane, width,
                              site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, ARGUS_SITE) {
  return argus::simt::shuffle("__shfl_up_sync", argus::simt::combine_shuffle_up, mask, value, int(delta),
                              width, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, ARGUS_SITE) {
  return argus::simt::shuffle("__shfl_down_sync", argus::simt::combine_shuffle_down, mask, value, int(delta),
                              width, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, ARGUS_SITE) {
  return argus::simt::shuffle("__shfl_xor_sync", argus::simt::combine_shuffle_xor, mask, value, lanes, width,
                              site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, ARGUS_SITE) {
  return argus::simt::collect("__ballot_sync", argus::simt::combine_ballot, mask, predicate, site);
}
inline int __any_sync(unsigned mask, int predicate, ARGUS_SITE) {
  return argus::simt::collect("__any_sync", argus::simt::combine_ballot, mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, ARGUS_SITE) {
  return argus::simt::collect("__all_sync", argus::simt::combine_ballot, mask, predicate, site) == mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, ARGUS_SITE) {
  return argus::simt::collect("__match_any_sync", argus::simt::combine_match, mask, value, site);
}

template <argus::simt::OneOf<int, unsigned> T>
T __reduce_add_sync(unsigned mask, T value, ARGUS_SITE) {
  return argus::simt::reduce("__reduce_add_sync", mask, value, argus::simt::Add{}, site);
}
template <argus::simt::OneOf<int, unsigned> T>
T __reduce_min_sync(unsigned mask, T value, ARGUS_SITE) {
  return argus::simt::reduce("__reduce_min_sync", mask, value, argus::simt::Min{}, site);
}
template <argus::simt::OneOf<int, unsigned> T>
T __reduce_max_sync(unsigned mask, T value, ARGUS_SITE) {
  return argus::simt::reduce("__reduce_max_sync", mask, value, argus::simt::Max{}, site);
}
#undef ARGUS_SITE
