-- `viwctl dead-letters retry` and `drop` take a row away; the operator may do that.
GRANT DELETE ON dead_letters TO viw_operator;
