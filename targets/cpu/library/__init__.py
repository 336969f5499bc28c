"""Networks for CPUs without TVM's runtime: the kernels of bundles, called by C of our own.

A stage writes the calls of `main` down (`calls`), one takes the kernels apart at their parallel loops and gives them
plain pointers (`phases`), one packs all that lives only for a while into one arena (`places`). Of that come C, an
archive and a shared library (`source`, `link`), and a program that tests them (`program`).
"""
