// Stands in for TileLang's header of the same name, whose half-precision and vector types generated code never uses
// here: reading them takes longer than compiling a kernel.
#pragma once

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
