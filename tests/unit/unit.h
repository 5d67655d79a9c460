/* What every unit test includes: cmocka wants these headers in this order. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define assert_ok(expr) assert_int_equal((expr), 0)
