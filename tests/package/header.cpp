// adamas.hpp needs no other include before it, and may be included twice.
#include "adamas/adamas.hpp"
#include "adamas/adamas.hpp"

int main() { return adamas::version().empty(); }
