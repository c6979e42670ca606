/* adamas.h is C: included first, and twice. */
#include "adamas/adamas.h"
#include "adamas/adamas.h"

int main(void) { return adamas_version() == 0; }
