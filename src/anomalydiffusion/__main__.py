"""`python -m anomalydiffusion`."""

from anomalydiffusion.app.main import main

main()
