// The mask rule, argus_kernels/attention/mask_rule.py, for one query.
#pragma once

#include "attention/arguments.h"
#include "common/cuda/device.cuh"

namespace argus::attention {

// A query sees key j where j < prefix, near ≤ j < visible or own_begin ≤ j < own_end. All ends lie within the
// user's keys.
struct QueryNumbers {
  int position;  // for the position bias and dropout
  int prefix;    // visible keys that the window never hides
  int near;      // the first key within the window
  int visible;
  int own_begin, own_end;

  ARGUS_DEVICE bool sees(int key) const {
    return key < prefix || (key >= near && key < visible) || (key >= own_begin && key < own_end);
  }
  ARGUS_DEVICE bool sees_nothing() const { return prefix <= 0 && near >= visible && own_begin >= own_end; }
  // No key before `begin` and from `end` on is seen.
  ARGUS_DEVICE int begin() const { return prefix > 0 ? 0 : min(near, own_begin); }
  ARGUS_DEVICE int end() const { return max(visible, own_end); }
};

// What the rule knows of a user.
struct UserNumbers {
  int keys;    // how many
  int lead;    // keys − queries
  int prefix;  // as given
};

ARGUS_DEVICE UserNumbers user_numbers(const Arguments& given, int user, int queries, int keys) {
  return {keys, keys - queries, given.prefix == nullptr ? 0 : given.prefix[user]};
}

// From the four numbers that are given for a query.
ARGUS_DEVICE QueryNumbers query_numbers(const UserNumbers& user, int window, int position, int visible,
                                        int own_begin, int own_end) {
  QueryNumbers numbers;
  numbers.position = position;
  numbers.visible = max(0, min(visible, user.keys));
  numbers.prefix = min(user.prefix, numbers.visible);
  numbers.near = position >= window ? position - window + 1 : 0;
  numbers.own_begin = max(0, own_begin);
  numbers.own_end = min(own_end, user.keys);
  return numbers;
}

// Of the user's query at `place`, which is the packed row `row`.
ARGUS_DEVICE QueryNumbers numbers_of(const Arguments& given, const UserNumbers& user, int row, int place) {
  const int own = user.lead + place;
  return query_numbers(user, given.window, given.position == nullptr ? own : given.position[row],
                       given.visible == nullptr ? own : given.visible[row],
                       given.own_begin == nullptr ? own : given.own_begin[row],
                       given.own_end == nullptr ? own + 1 : given.own_end[row]);
}

}  // namespace argus::attention
