-- A command whose entry broke the contract is rejected by the bridges. When Redis loses it before that,
-- it must be rejected after it is queued again, not run as what its row could keep of it.
ALTER TABLE agent_commands ADD COLUMN malformed boolean;
COMMENT ON COLUMN agent_commands.malformed IS 'its entry in viw.commands broke the contract (section 2)';
