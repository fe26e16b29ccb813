#include <stdio.h>
#include "lib/greet.h"

int main(void)
{
    int never_used;
    greet("world");
    return 0;
}
