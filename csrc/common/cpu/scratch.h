// Memory that a worker of a CPU kernel keeps from one piece of work to the next: it grows, is aligned to a
// cache line, and is not initialised.
//
// A thread keeps small blocks for its next call. malloc merges all small chunks that the process has freed
// before it serves a request of a kilobyte or more: in the backward pass of a small causal_attention, whose
// graph frees hundreds of chunks, that took more time than the kernel.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

namespace argus {

// Blocks of 64 bytes times a power of two that a thread has released and will take again.
class BlockCache {
 public:
  static constexpr size_t kAlignment = 64;

  BlockCache() = default;
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;
  ~BlockCache() {
    for (auto& blocks : kept_)
      for (void* block : blocks) std::free(block);
  }

  static void* take(size_t bytes) {
    const size_t kind = kind_of(bytes);
    if (kind < kKinds) {
      for (void*& block : mine().kept_[kind]) {
        if (block == nullptr) continue;
        void* taken = block;
        block = nullptr;
        mine().bytes_ -= kAlignment << kind;
        return taken;
      }
      bytes = kAlignment << kind;
    }
    void* made = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (made == nullptr) throw std::bad_alloc();
    return made;
  }

  // `bytes` as it was taken with; any thread may release.
  static void release(void* released, size_t bytes) {
    const size_t kind = kind_of(bytes);
    if (kind < kKinds && mine().bytes_ + (kAlignment << kind) <= kMaxBytes) {
      for (void*& block : mine().kept_[kind]) {
        if (block != nullptr) continue;
        block = released;
        mine().bytes_ += kAlignment << kind;
        return;
      }
    }
    std::free(released);
  }

 private:
  // Blocks of up to 512 KiB, a tile of scores in float64; nothing where the address sanitizer is to see each
  // block's end.
#ifdef __SANITIZE_ADDRESS__
  static constexpr size_t kKinds = 0;
#else
  static constexpr size_t kKinds = 14;
#endif
  static constexpr size_t kBlocksOfAKind = 8, kMaxBytes = size_t{2} << 20;

  static size_t kind_of(size_t bytes) {
    const size_t lines = bytes == 0 ? 1 : (bytes + kAlignment - 1) / kAlignment;
    return static_cast<size_t>(std::bit_width(lines - 1));
  }

  static BlockCache& mine() {
    thread_local BlockCache cache;
    return cache;
  }

  std::array<std::array<void*, kBlocksOfAKind>, kKinds> kept_{};
  size_t bytes_ = 0;
};

// For a worker of a few kilobytes that is allocated at every call: as a base class, it has the block cache
// serve `new`.
struct FromBlockCache {
  static void* operator new(size_t bytes) { return BlockCache::take(bytes); }
  static void* operator new(size_t bytes, std::align_val_t) { return BlockCache::take(bytes); }
  static void operator delete(void* worker, size_t bytes) { BlockCache::release(worker, bytes); }
  static void operator delete(void* worker, size_t bytes, std::align_val_t) {
    BlockCache::release(worker, bytes);
  }
};

template <class T>
class Scratch {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Scratch() = default;
  explicit Scratch(int64_t size) { at_least(size); }

  // At least `size` elements; their contents are lost if the memory has to grow.
  T* at_least(int64_t size) {
    if (size > size_) {
      const size_t bytes = static_cast<size_t>(size) * sizeof(T);
      data_.reset();
      size_ = 0;
      data_ = {static_cast<T*>(BlockCache::take(bytes)), Release{bytes}};
      size_ = size;
    }
    return data_.get();
  }

  T* get() const { return data_.get(); }

 private:
  struct Release {
    size_t bytes = 0;
    void operator()(T* data) const { BlockCache::release(data, bytes); }
  };
  std::unique_ptr<T, Release> data_;
  int64_t size_ = 0;
};

}  // namespace argus
