// A library that is compiled in no time: what faults of the cache are planted in.
extern "C" int accel_conformance_answer() { return 42; }
