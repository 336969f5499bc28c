// Checks that end the process.
#pragma once
#include <cstdlib>
#include <iostream>

struct Fatal {
  ~Fatal() {
    std::cerr << std::endl;
    std::abort();
  }
  std::ostream &stream() { return std::cerr; }
};

#define LOG(severity) LOG_##severity
#define LOG_FATAL Fatal().stream()
#define LOG_INFO std::cerr
#define LOG_WARNING std::cerr
#define CHECK(condition) \
  if (!(condition)) Fatal().stream() << #condition
#define CHECK_EQ(a, b) CHECK((a) == (b))
#define CHECK_NE(a, b) CHECK((a) != (b))
#define CHECK_LT(a, b) CHECK((a) < (b))
#define CHECK_LE(a, b) CHECK((a) <= (b))
#define CHECK_GT(a, b) CHECK((a) > (b))
#define CHECK_GE(a, b) CHECK((a) >= (b))
#define ICHECK CHECK
#define ICHECK_EQ CHECK_EQ
#define ICHECK_NE CHECK_NE
#define ICHECK_LT CHECK_LT
#define ICHECK_LE CHECK_LE
#define ICHECK_GT CHECK_GT
#define ICHECK_GE CHECK_GE
