// Runs programs of program.py: short lists of operations on a sample's numbers, all float64.
//
// An instruction applies one operation to `count` elements. Its operands are places in the
// registers, which a list names element by element, so that views, broadcasts and reversals cost
// nothing here. Results are written one behind the other.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

// The order of OPERATIONS in program.py.
enum Operation : int32_t {
  ADD, SUBTRACT, MULTIPLY, DIVIDE, MAXIMUM, MINIMUM,
  EQUAL, UNEQUAL, LESS, LESS_EQUAL, GREATER, GREATER_EQUAL, BOTH, EITHER,
  NEGATE, NOT, ABSOLUTE, SIGN, RECIPROCAL, SQUARE_ROOT, SELECT
};

template <class Function>
inline void unary(double* r, const int32_t* a, int64_t count, double* to, Function function) {
  for (int64_t n = 0; n < count; n++) to[n] = function(r[a[n]]);
}

template <class Function>
inline void binary(double* r, const int32_t* a, int64_t count, double* to, Function function) {
  const int32_t* b = a + count;
  for (int64_t n = 0; n < count; n++) to[n] = function(r[a[n]], r[b[n]]);
}

void apply(int32_t operation, double* r, const int32_t* a, int64_t count, double* to) {
  const auto both = [=](auto function) { binary(r, a, count, to, function); };
  const auto one = [=](auto function) { unary(r, a, count, to, function); };
  switch (operation) {
    case ADD: both([](double x, double y) { return x + y; }); break;
    case SUBTRACT: both([](double x, double y) { return x - y; }); break;
    case MULTIPLY: both([](double x, double y) { return x * y; }); break;
    case DIVIDE: both([](double x, double y) { return x / y; }); break;
    // Of a NaN and a number, the NaN.
    case MAXIMUM: both([](double x, double y) { return x != x || x > y ? x : y; }); break;
    case MINIMUM: both([](double x, double y) { return x != x || x < y ? x : y; }); break;
    case EQUAL: both([](double x, double y) { return double(x == y); }); break;
    case UNEQUAL: both([](double x, double y) { return double(x != y); }); break;
    case LESS: both([](double x, double y) { return double(x < y); }); break;
    case LESS_EQUAL: both([](double x, double y) { return double(x <= y); }); break;
    case GREATER: both([](double x, double y) { return double(x > y); }); break;
    case GREATER_EQUAL: both([](double x, double y) { return double(x >= y); }); break;
    case BOTH: both([](double x, double y) { return double(x != 0 && y != 0); }); break;
    case EITHER: both([](double x, double y) { return double(x != 0 || y != 0); }); break;
    case NEGATE: one([](double x) { return -x; }); break;
    case NOT: one([](double x) { return double(x == 0); }); break;
    case ABSOLUTE: one([](double x) { return std::fabs(x); }); break;
    case SIGN: one([](double x) { return double(x > 0) - double(x < 0); }); break;
    case RECIPROCAL: one([](double x) { return 1.0 / x; }); break;
    case SQUARE_ROOT: one([](double x) { return std::sqrt(x); }); break;
    case SELECT: {
      const int32_t *b = a + count, *c = b + count;
      for (int64_t n = 0; n < count; n++) to[n] = r[a[n]] != 0 ? r[b[n]] : r[c[n]];
    }
  }
}

}  // namespace

extern "C" {

// Mirrored by INSTRUCTION in program.py.
struct Instruction {
  int32_t operation;
  int32_t count;
  int32_t to;        // first register of the result
  int32_t operands;  // where the lists of registers begin: of the first operand, the second, …
};

// One number of a sample that the program reads. Mirrored by READ in program.py.
struct Read {
  int32_t to;      // register
  int32_t table;
  int32_t column;
  int32_t reserved;
};

// One of the caller's tables: a row for each of its samples.
struct Table {
  const double* first;
  int64_t width;
};

int64_t lossd_program_bytes() { return sizeof(Instruction) + sizeof(Read) + sizeof(Table); }

// What some instructions make of some rows of the tables: `results` is [rows, result_count]. The
// registers hold the constants already, and what instructions before these have left; those of a
// row begin `stride` behind those of the row before, and rows share them if that is 0.
void lossd_run(const Instruction* instructions, int64_t instruction_count, const int32_t* operands,
               const Read* reads, int64_t read_count, const int32_t* result, int64_t result_count,
               const Table* tables, const int64_t* rows, int64_t row_count, double* registers,
               int64_t stride, double* results) {
  for (int64_t n = 0; n < row_count; n++, registers += stride) {
    for (const Read* read = reads; read < reads + read_count; read++) {
      const Table& table = tables[read->table];
      registers[read->to] = table.first[rows[n] * table.width + read->column];
    }
    for (const Instruction* one = instructions; one < instructions + instruction_count; one++)
      apply(one->operation, registers, operands + one->operands, one->count, registers + one->to);
    for (int64_t k = 0; k < result_count; k++)
      results[n * result_count + k] = registers[result[k]];
  }
}

}  // extern "C"
