// Rows of weights in the order in which they will be read, so that each can be prefetched some rows ahead.
//
// Which rows are read depends on the data: no processor can guess them, and a memory's latency is that of many rows.
#pragma once
#include <cstdint>

namespace clada {

// I only keeps one instruction set's code apart from another's.
template <class I>
class RowSchedule {
 public:
  using Row = const uint8_t*;
  static constexpr unsigned kMost = 1024;  // rows that may wait

  explicit RowSchedule(unsigned ahead) : ahead_(ahead) {}

  void push(Row row) { rows_[end_++ % kMost] = row; }

  // Takes `count` rows, and those to prefetch meanwhile, the last repeated where there are fewer than kCount.
  template <int kCount>
  void take(int count, Row (&rows)[kCount], Row (&next)[kCount]) {
    for (int r = 0; r < kCount; ++r) {
      const unsigned at = first_ + static_cast<unsigned>(r < count ? r : count - 1);
      rows[r] = rows_[at % kMost];
      next[r] = rows_[(at + ahead_ < end_ ? at + ahead_ : at) % kMost];
    }
    first_ += static_cast<unsigned>(count);
  }

 private:
  Row rows_[kMost];
  unsigned ahead_, first_ = 0, end_ = 0;
};

}  // namespace clada
