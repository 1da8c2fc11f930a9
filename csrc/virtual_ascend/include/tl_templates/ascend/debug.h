// Device printing and assertions are not part of the kernels' portable subset.
#pragma once
