"""`python -m tomoray`, for machines whose PATH does not know `tomoray`."""

from tomoray.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
