"""Deliberate bugs: each breaks one promise of the product, and names a test that keeps it.

Beside the bugs of the simulator (tests/storm/broken.py), which prove that the simulator can see: these prove that the
tests of a part see it, in the time of a unit test. Whoever changes a line that a bug is made of changes the bug.
"""

from tests.mutants.arena import Mutant


def _bug(name: str, file: str, old: str, new: str, test_file: str, test: str) -> Mutant:
    return Mutant(name, f"ploopfs/{file}", old, new, f"tests/{test_file}::{test}")


MUTANTS = (
    # image
    _bug(
        "name a cluster before its bytes are on stable storage", "image/plan.py",
        "else Barrier(), WriteMap(entries, are_zeroes)]", "else WriteMap(entries, are_zeroes), Barrier()]",
        "image/test_plan.py",
        "test_one_barrier_and_one_map_update_serve_the_whole_request",
    ),
    _bug(
        "write no zeroes over what a lower delta has", "image/plan.py",
        "elif check_zeros and stack_map.is_hole(slot) and is_zero", "elif check_zeros and is_zero",
        "image/test_plan.py", "test_zeroes_hide_what_lies_below",
    ),
    _bug(
        "take a cluster for zero when its last byte is not looked at", "image/plan.py",
        "bytes(data) == bytes(len(data))", "bytes(data[:-1]) == bytes(len(data) - 1)",
        "image/test_plan.py", "test_one_byte_that_is_not_zero_takes_a_cluster",
    ),
    _bug(
        "copy up only as far as the write goes", "image/plan.py",
        "_cluster_segments(stack_map, slot, 0, cluster_bytes)",
        "_cluster_segments(stack_map, slot, 0, within + stop - start)", "image/test_plan.py",
        "test_a_cluster_of_a_lower_level_is_copied_up_whole",
    ),
    _bug(
        "show the old bytes of a cluster that is used again", "image/plan.py",
        "if may_hold_old_bytes and stack_map.is_hole(slot) and not whole:",
        "if not may_hold_old_bytes and stack_map.is_hole(slot) and not whole:", "image/test_plan.py",
        "test_a_part_of_a_cluster_that_nobody_has_is_scrubbed_where_old_bytes_may_be",
    ),
    _bug(
        "allocate a used cluster", "image/allocator.py", "taken = np.sort(used)\n",
        "taken = np.sort(used[:0])\n", "image/test_allocator.py",
        "test_gaps_come_first_from_the_lowest_and_may_hold_old_bytes",
    ),
    _bug(
        "allocate what an entry past the disk's end names", "image/bat.py",
        "np.concatenate((entries[entries != 0], self._past_end))", "entries[entries != 0]", "image/test_bat.py",
        "test_entries_past_the_disks_end_stay_taken_and_stay_in_the_file",
    ),
    _bug(
        "clear the other entries of a map page", "image/bat.py", "entries = self.clusters[first:end]",
        'entries = array("I", bytes(4 * (end - first)))', "image/test_bat.py",
        "test_pages_change_their_entries_and_no_other_byte",
    ),
    _bug(
        "say in the header that the disk has grown before it has", "image/growth.py",
        "return (*steps, Barrier(), WriteHeader(new))", "return (*steps, WriteHeader(new))", "engine/test_grow.py",
        "test_the_steps_are_these",
    ),
    _bug(
        "see no cluster that two entries share", "image/survey.py", "twice[names] = self.used.add(clusters[names])",
        "self.used.add(clusters[names])", "image/test_check.py",
        "test_the_originals_verdict_holds_whatever_its_options",
    ),
    _bug(
        "repair into a leak that a damaged entry may have meant", "image/repair.py", "reuse=not loses", "reuse=True",
        "image/test_repair.py", "test_each_defect_has_its_change",
    ),
    # engine
    _bug(
        "name a repaired copy before it is on stable storage", "engine/repair.py",
        "    if len(plan.copies):\n"
        "        await file.sync()\n",
        "    if len(plan.copies):\n", "engine/test_repair.py",
        "test_the_order_is_mark_void_copy_name_clear_give_back_look_again_clear_the_void_and_unmark",
    ),
    _bug(
        "close an unclosed image that another host may be writing", "engine/unclosed.py",
        "if not file.identity.has_locks:", "if file.identity.has_locks and not file.writable:",
        "engine/test_opening.py", "test_without_locks_the_mark_is_believed",
    ),
    _bug(
        "close an unclosed image that somebody is looking at", "engine/unclosed.py",
        "        await file.lock()\n"
        "        examined = await examine(file)\n"
        "        if not",
        "        examined = await examine(file)\n"
        "        if not",
        "engine/test_opening.py", "test_who_comes_before_an_unclosed_image_is_closed_keeps_it_from_being_closed",
    ),
    _bug(
        "repair an image that was not closed without being asked", "engine/unclosed.py",
        "            raise examined.report.problems[0]", "            pass", "engine/test_opening.py",
        "test_an_unclosed_image_that_breaks_a_rule_is_not_repaired_unasked",
    ),
    _bug(
        "give back what an entry past the disk's end still names", "engine/repair.py",
        "    await _put(file, plan, plan.cleared_slots[plan.losses :], 0)\n"
        "    await _give_back(file, plan, progress)\n",
        "    await _give_back(file, plan, progress)\n"
        "    await _put(file, plan, plan.cleared_slots[plan.losses :], 0)\n",
        "engine/test_repair.py",
        "test_what_an_entry_past_the_disk_names_is_given_back_when_that_entry_is_gone_for_good",
    ),
    _bug(
        "build upon a lower delta that somebody writes", "engine/opening.py",
        '            raise not_closed(delta.path, f"m_DiskInUse', '            not_closed(delta.path, f"m_DiskInUse',
        "engine/test_opening.py", "test_nothing_is_built_upon_a_lower_delta_that_was_not_closed_and_nothing_is_written",
    ),
    _bug(
        "call a flush done that the storage was not asked for", "engine/os_file.py", "partial(os.fdatasync, self._fd)",
        "partial(os.fstat, self._fd)", "torture/test_power_cut.py",
        "test_whenever_the_power_is_cut_what_was_flushed_is_there",
    ),
    _bug(
        "let a mount that dies under a probe be a bug of the agent", "engine/probe.py",
        "opened.callback(close_image, fd)", "opened.callback(os.close, fd)", "engine/test_probe.py",
        "test_a_mount_that_dies_in_the_midst_of_a_probe_is_what_the_probe_says_and_close_says_no_more",
    ),
    _bug(
        "call a snapshot taken that a power cut takes back", "engine/create.py",
        "            _replace_file(descriptor_path, text, making)\n        _make_rename_durable(descriptor_path)\n",
        "            _replace_file(descriptor_path, text, making)\n", "torture/test_power_cut.py",
        "test_whenever_the_power_is_cut_what_was_flushed_is_there",
    ),
    _bug(
        "skip the barrier", "engine/writer.py",
        "            case Barrier():\n"
        "                await self._sync()\n",
        "            case Barrier():\n"
        "                pass\n",
        "engine/test_order.py",
        "test_data_are_synced_before_the_map_names_them_and_the_map_is_written_before_the_answer",
    ),
    _bug(
        "name a cluster that may lie past the end of the file", "engine/writer.py",
        "                if self._top.durable_size < size or self.loss is not None:\n",
        "                if self.loss is not None:\n", "engine/test_power.py",
        "test_whatever_a_power_failure_leaves_of_an_operation_is_sound",
    ),
    _bug(
        "put no barrier before what takes the place of a lower delta's cluster", "image/plan.py",
        "are_zeroes &= is_clean and stack_map.is_hole(slot)", "are_zeroes &= is_clean", "image/test_plan.py",
        "test_of_new_clusters_that_were_and_are_zeroes_the_size_of_the_file_is_all_that_must_be_durable",
    ),
    _bug(
        "put no barrier before what takes the place of old bytes", "image/plan.py",
        "are_zeroes &= is_clean and stack_map.is_hole(slot)", "are_zeroes &= stack_map.is_hole(slot)",
        "image/test_plan.py", "test_a_crash_anywhere_leaves_every_cluster_old_or_new",
    ),
    _bug(
        "keep an answer back while the next write of its lane hangs", "engine/workers.py",
        "            self._tell()  # now, as this one may take for ever\n", "", "engine/test_workers.py",
        "test_an_answer_comes_though_the_next_of_its_lane_hangs",
    ),
    _bug(
        "answer at once what standby refuses", "device/device.py",
        "        if not self.queue.is_free:\n            return None\n", "",
        "device/test_nowait.py", "test_in_standby_nobody_is_answered",
    ),
    _bug(
        "leave to the ring what is asked while the thread ends", "blockfuse/connection.py",
        "await self._busy.serve() or bool(self._asked.poll(0))", "await self._busy.serve()",
        "blockfuse/test_busy.py", "test_who_asks_while_the_thread_ends_goes_on_with_it",
    ),
    _bug(
        "look before each of several requests whether it is there", "blockfuse/busy.py",
        "if self._unanswered or self._asked.poll(0) else None", "if self._asked.poll(0) else None",
        "blockfuse/test_busy.py", "test_of_several_at_a_time_he_reads_the_next_one_without_a_look_whether_it_is_there",
    ),
    _bug(
        "take a slow storage for a pause of who writes", "blockfuse/looking.py",
        "_TURN_NS if had_writes else look_ns(moved_bytes)", "look_ns(moved_bytes)",
        "blockfuse/test_soon.py", "test_whose_write_is_under_way_has_made_no_pause_if_he_asks_again_soon",
    ),
    _bug(
        "look for one who has many answers to look at no longer than for others", "blockfuse/busy.py",
        "look_ns(self._bytes) if self._is_alone else deep_look_ns(self._bytes)", "look_ns(self._bytes)",
        "blockfuse/test_busy.py", "test_who_has_several_requests_under_way_is_looked_for_longer",
    ),
    _bug(
        "answer by the gate as it was before the ring told of a write that failed", "blockfuse/connection.py",
        "        self._end_turn()\n        return self._ring", "        return self._ring",
        "blockfuse/test_replies.py",
        "test_what_is_answered_without_a_pause_shares_a_turn_which_is_over_with_what_the_ring_tells",
    ),
    _bug(
        "acknowledge a write and keep nothing of it", "device/soon.py",
        "                self._wrote(start, data, begun.stack)\n", "                pass\n",
        "device/test_soon.py", "test_a_write_in_place_is_on_the_storage_and_is_kept_until_it_is_flushed",
    ),
    _bug(
        "acknowledge a write before it has ended", "device/soon.py",
        "        if not self._queue.stack.write_soon(start, data, heard, reply, pieces):\n"
        "            return False\n"
        "        begun = self._queue.begin(Op.WRITE, len(data), since_ns=since_ns)\n"
        "        self._kept_bytes += kept_bytes\n",
        "        if not self._queue.stack.write_soon(start, data, lambda _error: None, reply, pieces):\n"
        "            return False\n"
        "        begun = self._queue.begin(Op.WRITE, len(data), since_ns=since_ns)\n"
        "        self._kept_bytes += kept_bytes\n"
        "        heard(None)\n",
        "device/test_soon.py", "test_it_is_not_acknowledged_and_not_kept_before_it_has_ended",
    ),
    _bug(
        "do not judge the error of a write that no task waits for", "device/soon.py",
        "            if error is not None:\n"
        "                written(",
        "            if error is not None and offset < 0:\n"
        "                written(",
        "device/test_soon.py", "test_one_that_fails_is_judged_as_any_request",
    ),
    _bug(
        "allocate a cluster that another write is allocating", "engine/writer.py",
        "        while await self.claims.wait_none(slots_to_allocate(self._map, offset, len(data))):",
        "        while await self.claims.wait_none(()):", "engine/test_concurrency.py",
        "test_writes_to_one_new_cluster_allocate_it_once",
    ),
    _bug(
        "give a freed cluster to others while a request may still use it", "engine/writer.py",
        "self._epochs.retire(lambda: self._release(clusters))", "self._release(clusters)", "engine/test_concurrency.py",
        "test_a_freed_cluster_serves_nobody_else_while_an_old_read_is_in_flight",
    ),
    _bug(
        "punch a cluster that an entry on stable storage names", "engine/writer.py",
        "        await self._map_writer.submit(dict.fromkeys(slots, 0))\n"
        "        await self._sync()\n",
        "        await self._map_writer.submit(dict.fromkeys(slots, 0))\n", "engine/test_order.py",
        "test_a_cluster_is_given_back_only_after_the_cleared_entry_is_durable",
    ),
    _bug(
        "free a cluster that a failed write may yet reach", "engine/writer.py",
        "if error.errno in SURELY_NOT_WRITTEN and not", "if not", "engine/test_order.py",
        "test_only_an_error_that_excludes_late_bytes_frees_the_cluster",
    ),
    _bug(
        "free a cluster that an uncertain entry may name", "engine/writer.py",
        "error.errno in SURELY_NOT_WRITTEN and not self._top.uncertain_slots.intersection(new_clusters):",
        "error.errno in SURELY_NOT_WRITTEN:", "engine/test_order.py",
        "test_enospc_for_the_map_itself_frees_no_cluster_that_the_file_may_name",
    ),
    _bug(
        "acknowledge a write to a cluster that the file may not name any more", "engine/writer.py",
        "        await self._name_again()\n        while", "        while", "engine/test_order.py",
        "test_a_write_to_a_cluster_whose_discard_failed_halfway_is_acknowledged_when_the_map_names_it_again",
    ),
    _bug(
        "write soon to a cluster that the file may not name any more", "engine/aims.py",
        "self._is_certain = not top.uncertain_slots", "self._is_certain = True",
        "engine/test_order.py",
        "test_a_write_to_a_cluster_whose_discard_failed_halfway_is_acknowledged_when_the_map_names_it_again",
    ),
    _bug(
        "flush without the entries that are uncertain", "engine/writer.py",
        "            await self._map_writer.submit({})\n", "            pass\n", "engine/test_order.py",
        "test_a_flush_vouches_for_the_map_of_a_cluster_whose_discard_failed_halfway",
    ),
    _bug(
        "give back a cluster that hides a lower delta", "image/plan.py", "        elif below.is_hole(slot):",
        "        elif below.is_hole(slot) or not below.is_hole(slot):", "engine/test_zeroes.py",
        "test_each_kind_of_cluster_gives_back_what_the_format_lets_it",
    ),
    _bug(
        "forget what a merged level had", "engine/stack.py",
        "self.below = lower if below is None else below.joined(lower)", "self.below = lower", "engine/test_zeroes.py",
        "test_what_became_zero_after_a_merge_stays_so_where_the_level_is_named_again",
    ),
    _bug(
        "plan zeroes, and not again when a copy-up has ended", "engine/writer.py",
        "        while await self.claims.wait_none(plan.changed_slots):\n"
        "            plan = plan_zero(self._map, self._below, slots)",
        "        while await self.claims.wait_none(plan.changed_slots):\n"
        "            pass", "engine/test_zeroes.py",
        "test_a_copy_up_that_is_under_way_shows_no_old_bytes_after_the_zeroes",
    ),
    _bug(
        "name a cluster of zeroes before the file has it for certain", "image/plan.py",
        "*scrubs, Barrier(), WriteMap(entries)))", "*scrubs, WriteMap(entries), Barrier()))", "engine/test_zeroes.py",
        "test_a_cluster_of_zeroes_above_a_lower_delta_is_durable_before_the_map_names_it",
    ),
    _bug(
        "count a cluster twice that is written again", "image/map.py",
        "self.present += self.levels[slot] == HOLE_LEVEL", "self.present += 1", "image/test_map.py",
        "test_what_is_present_is_counted_right_after_any_changes_and_found_from_any_cluster",
    ),
    _bug(
        "let a copy that follows the tracking be too short", "engine/writer.py",
        "                self._track(new.new_clusters.values())\n", "",
        "engine/test_zeroes.py", "test_a_cluster_of_zeroes_is_tracked_though_nothing_is_written_to_it",
    ),
    _bug(
        "write before the image is marked in use", "engine/delta.py",
        "        await self._write_header()\n"
        "        self.marked, self",
        "        self.marked, self", "engine/test_order.py", "test_the_mark_is_durable_before_the_first_change",
    ),
    _bug(
        "believe the fsync after one that failed", "engine/delta.py", "            self._sync_error = error\n", "",
        "engine/test_order.py", "test_a_failed_sync_stays_failed_and_asks_the_file_no_more",
    ),
    _bug(
        "clear the mark while data are on their way", "engine/delta.py",
        "        await self.sync()\n"
        "        self.header = closed\n",
        "        self.header = closed\n", "engine/test_order.py",
        "test_a_clean_close_syncs_everything_before_it_clears_the_mark",
    ),
    _bug(
        "cut off the cluster that an uncertain entry may name", "engine/delta.py",
        "                await self.sync()  # before the file is cut", "                # before the file is cut",
        "engine/test_order.py", "test_a_map_entry_of_which_nobody_knows_is_written_again_before_the_mark_is_cleared",
    ),
    _bug(
        "vouch for a file that something given up may yet change", "engine/delta.py",
        '            raise StorageTimeout(f"{self.path}: an operation',
        '            StorageTimeout(f"{self.path}: an operation', "engine/test_order.py",
        "test_a_file_with_an_operation_that_was_given_up_is_not_closed_cleanly",
    ),
    _bug(
        "leave in a large read what was read before, where nobody has anything", "engine/stack.py",
        "                    part[:] = bytes(length)\n", "", "device/test_nowait.py",
        "test_a_large_one_has_zeroes_where_nobody_has_anything",
    ),
    _bug(
        "read zeroes where somebody has cut the file", "engine/stack.py",
        "        if offset + len(data) < delta.file_size or offset + length > delta.trusted_size:",
        "        if offset + length > delta.trusted_size:", "engine/test_order.py",
        "test_a_file_that_somebody_has_cut_is_an_error_and_not_zeroes",
    ),
    _bug(
        "answer fua before the flush", "engine/stack.py",
        "            self._counters.bio_fua_out += 1\n"
        "            await self.flush()\n",
        "            self._counters.bio_fua_out += 1\n", "engine/test_order.py",
        "test_fua_is_answered_after_a_sync_that_follows_the_map",
    ),
    _bug(
        "forget the rest of a write that was short", "engine/blocking.py",
        "        view = view[count:]\n"
        "        offset += count\n",
        "        break\n", "engine/test_os_file.py", "test_short_counts_of_the_system_are_gone_on_with",
    ),
    _bug(
        "write an image that something given up may yet overwrite", "engine/given_up.py", "return self.path == path",
        "return False", "engine/test_late.py",
        "test_a_change_reaches_its_own_file_and_whatever_a_new_mount_shows_at_its_path",
    ),
    _bug(
        "see no writer beside us", "engine/lock.py",
        "[(p, _USED + p) for p in _NOT_SHARED if _is_locked(fd, _USED + p)]",
        "[(p, _USED + p) for p in _NOT_SHARED if not fd]", "engine/test_file_conformance.py",
        "test_a_writer_and_a_reader_exclude_each_other",
    ),
    _bug(
        "allow a directory whose name only begins like an allowed one", "engine/confined.py",
        "place.startswith(f\"{root.rstrip('/')}/\")", "place.startswith(root)", "engine/test_confined.py",
        "test_a_directory_whose_name_only_begins_like_an_allowed_one_is_another",
    ),
    _bug(
        "forget a loss before the repair has ended", "engine/repair.py",
        "await _put(file, plan, lost, NEVER_ON_DISK)", "await _put(file, plan, lost, 0)", "engine/test_repair.py",
        "test_a_repair_that_was_cut_off_tells_of_the_same_loss_when_it_is_begun_again",
    ),
    _bug(
        "take a lock though one that was given up may yet go", "engine/os_file.py",
        "        if not self._locking.acquire(blocking=False):\n            return False\n",
        "        if not self._locking.acquire(blocking=False):\n            self._locking = threading.Lock()\n"
        "            self._locking.acquire()\n",
        "engine/test_os_file.py", "test_a_lock_is_taken_back_after_the_unlock_that_was_given_up_and_is_kept",
    ),
    _bug(
        "ask a cluster's other hosts for a lock in the event loop", "engine/storage.py",
        "return self.filesystem in _ANSWERS_FROM_MEMORY", "return not self.is_remote", "engine/test_os_file.py",
        "test_a_size_and_a_free_lock_take_no_thread_where_no_disk_and_no_host_is_asked_for_them",
    ),
    _bug(
        "wait for something between a map and its check", "engine/loading.py",
        "    report = check_image(header, area, size, path, extension)",
        "    extension = await read_extension(file, header, size)\n"
        "    report = check_image(header, area, size, path, extension)",
        "engine/test_opening.py", "test_images_that_are_opened_beside_each_other_have_a_map_each",
    ),
    _bug(
        "let an unlock that was given up take away a later lock", "engine/os_file.py",
        "            with self._locking:\n", "            if self._locking:\n", "engine/test_os_file.py",
        "test_a_lock_is_taken_back_after_the_unlock_that_was_given_up_and_is_kept",
    ),
    _bug(
        "take devices away for a file that says nothing of them", "cli/configured.py",
        "config = load(path, names_devices=True)", "config = load(path)", "test_configured.py",
        "test_a_file_with_mistakes_changes_nothing_and_every_mistake_is_told_with_its_line",
    ),
    _bug(
        "make a disk that nobody wants any more", "engine/create.py",
        "        making.check()\n        making.undecided", "        making.undecided", "engine/test_create.py",
        "test_what_nobody_wants_any_more_is_gone_again_wherever_that_shows",
    ),
    _bug(
        "take away an image that the descriptor may name", "engine/create.py",
        "            if not making.undecided:", "            if True:", "engine/test_create.py",
        "test_what_a_descriptor_may_name_whose_rename_was_lost_is_not_taken_away",
    ),
    _bug(
        "have an image removed that holds something", "engine/create.py",
        "if size == whole and not is_named:", "if not is_named:", "engine/test_create.py",
        "test_an_image_that_holds_something_or_is_in_use_is_nobodys_to_remove",
    ),
    # device
    _bug(
        "keep the lock from who repairs the image", "device/handover.py",
        "    if delta.lock_lost:\n        return\n", "", "device/test_lock_lost.py",
        "test_a_top_that_got_a_mark_while_nobody_had_its_lock_is_opened_again_after_a_repair",
    ),
    _bug(
        "resume a table on whose top something was given up", "device/mapper.py",
        "waiting.lost_its_lock or waiting.is_in_doubt or", "waiting.lost_its_lock or", "device/test_mapper.py",
        "test_a_table_on_whose_top_something_was_given_up_is_loaded_again_and_not_resumed",
    ),
    _bug(
        "let an operation on a removed device open images", "device/queue.py",
        "        if self._closing:\n            raise ShuttingDown(\"the device, or",
        "        if False:\n            raise ShuttingDown(\"the device, or", "device/test_registry.py",
        "test_an_operation_that_waited_while_its_device_was_removed_opens_nothing",
    ),
    _bug(
        "believe a store that was gone while a fuse was out", "device/queue.py",
        "return tells_of_loss(error) and self.stack.is_unconfirmed and", "return False and",
        "device/test_unflushed.py",
        "test_on_a_device_without_standby_en_a_store_that_was_gone_is_not_believed_by_a_flush_until_reopen",
    ),
    _bug(
        "believe a sync beside the news of a loss", "engine/answers.py",
        "if self._failure is not None and self._failure is not mark:", "if False:", "engine/test_answers.py",
        "test_a_sync_is_not_believed_when_a_change_beside_it_was_told_that_the_storage_is_lost",
    ),
    _bug(
        "confirm with a sync what began while it ran", "engine/writer.py",
        "mark, loss = self._top.map_writes, self.unconfirmed.mark(), self.loss",
        "mark, loss = self._top.map_writes, 1 << 60, self.loss", "engine/test_unconfirmed.py",
        "test_a_write_that_ends_during_a_sync_is_not_confirmed_by_it",
    ),
    _bug(
        "judge a stale generation", "device/queue.py",
        "        if generation == self.generation:\n"
        "            is_fault",
        "        if generation <= self.generation:\n"
        "            is_fault",
        "device/test_triggers.py", "test_a_late_error_of_a_replaced_top_changes_nothing",
    ),
    _bug(
        "abort a device that goes to standby", "device/queue.py",
        "is_fault and not means_standby and self._flavour.aborts:", "is_fault and self._flavour.aborts:",
        "device/test_triggers.py", "test_the_device_goes_to_standby_and_is_not_aborted",
    ),
    _bug(
        "replace while a request is in flight", "device/stillness.py",
        "        try:\n"
        "            await self._wait_drained()\n"
        "            yield",
        "        try:\n"
        "            yield",
        "device/test_queue.py", "test_a_quiesce_waits_for_what_is_in_flight",
    ),
    _bug(
        "let a held request overtake an older one", "device/queue.py",
        "                if self.room.oldest is ticket:\n"
        "                    return",
        "                if ticket:\n"
        "                    return",
        "device/test_hold.py", "test_who_was_let_go_lets_one_pass_that_came_back_with_an_older_place",
    ),
    _bug(
        "hand up an errno that no block status has", "device/flavour.py",
        "storage_errno if storage_errno in BLOCK_LAYER_ERRNOS else errno.EIO", "storage_errno",
        "device/test_flavour.py", "test_through_the_block_layer_only_what_has_a_status_of_its_own_stays",
    ),
    _bug(
        "hold more requests than the bound", "device/waiting.py", "if self.held >= self.policy.requests:",
        "if self.held > self.policy.requests:", "device/test_hold.py",
        "test_with_the_bound_on_their_number_reached_further_requests_are_refused",
    ),
    _bug(
        "go to standby because the storage is full", "device/standby.py",
        "frozenset({errno.EBUSY, errno.ENOTCONN, errno.EIO})",
        "frozenset({errno.EBUSY, errno.ENOTCONN, errno.EIO, errno.ENOSPC})", "device/test_standby.py",
        "test_three_answers_of_the_storage_mean_standby",
    ),
    _bug(
        "touch a queue whose STANDBY_EN is out", "device/standby.py",
        "(State.NOT_SUPPORTED, Event.STORAGE_LOST): State.NOT_SUPPORTED",
        "(State.NOT_SUPPORTED, Event.STORAGE_LOST): State.ON", "device/test_standby.py",
        "test_what_happens_leads_where_the_table_says",
    ),
    _bug(
        "stay in standby when nobody is left to end it", "device/standby.py",
        "(State.ON, Event.DETACHED): State.NOT_SUPPORTED", "(State.ON, Event.DETACHED): State.ON",
        "device/test_standby.py", "test_the_spec_in_one_line_per_transition",
    ),
    _bug(
        "forget a write that was acknowledged during the flush", "device/device.py",
        "        mark = self.unflushed.mark()\n"
        "        await stack.flush()\n"
        "        if",
        "        await stack.flush()\n"
        "        mark = self.unflushed.mark()\n"
        "        if",
        "device/test_unflushed.py", "test_a_flush_confirms_only_what_was_acknowledged_before_it_started",
    ),
    _bug(
        "have a recovery wait for a flush in the background", "device/flusher.py",
        "        if self._queue.standby.state is State.ON:\n",
        "        if False:\n", "device/test_flusher.py", "test_a_recovery_does_not_wait_for_one_that_hangs",
    ),
    _bug(
        "begin a flush in the background behind a gate that is shut", "device/flusher.py",
        "return self._queue.is_free and not self._queue.is_lost", "return not self._queue.is_lost",
        "device/test_flusher.py", "test_while_the_queue_is_suspended_none_waits_and_it_begins_with_the_resume",
    ),
    _bug(
        "close an image in the middle of a flush in the background", "device/device.py",
        "                await self.flusher.aclose()\n", "", "device/test_flusher.py",
        "test_a_daemon_that_ends_lets_the_one_under_way_end_and_closes_the_image",
    ),
    _bug(
        "write older bytes again over newer ones", "device/unflushed.py",
        "in _last_changes(changes, sorted(slots), stack.cluster_bytes):", "in changes:", "device/test_unflushed.py",
        "test_what_is_written_again_never_puts_an_older_byte_where_the_storage_had_a_newer_one",
    ),
    _bug(
        "forget a discard", "device/unflushed.py",
        "                    await stack.write_zeroes(change.offset + start, length, unmap=True)\n", "",
        "device/test_unflushed.py", "test_what_was_discarded_is_zero_on_an_image_that_never_had_the_cluster",
    ),
    _bug(
        "keep of zeroes the whole clusters and not the edges", "device/unflushed.py",
        "        if last < end:\n"
        "            self.wrote(last, bytes(end - last))\n", "", "device/test_sparse.py",
        "test_the_edges_are_kept_as_writes_and_the_clusters_between_as_zeroes",
    ),
    _bug(
        "call what was written again durable without a flush", "device/unflushed.py",
        "        if changes:\n"
        "            await stack.flush()\n",
        "", "device/test_unflushed.py", "test_after_recovery_it_is_on_stable_storage_and_nothing_is_kept",
    ),
    _bug(
        "forget the replay", "device/replace.py", "                await self._replay(stack, timeout)\n", "",
        "device/test_replace.py", "test_what_a_copy_lacks_and_no_flush_has_confirmed_is_written_to_it_again",
    ),
    _bug(
        "clear standby before the swap", "device/replace.py", "                await self._replay(stack, timeout)\n",
        "                self._queue.standby.recovered()\n"
        "                await self._replay(stack, timeout)\n",
        "device/test_replace_options.py", "test_a_replay_that_fails_leaves_standby_and_takes_its_mark_away_again",
    ),
    _bug(
        "write to the image whose lease is lost", "device/replace.py", "if top.writable and not self._was_lost:",
        "if top.writable:", "device/test_replace.py", "test_in_standby_the_old_image_is_never_written_again",
    ),
    _bug(
        "take an image that somebody else has marked", "device/replace.py",
        "            refuse_foreign_mark(delta, accept_mark)\n", "", "device/test_replace_refused.py",
        "test_a_read_only_device_refuses_an_image_in_use_too",
    ),
    _bug(
        "take a copy that lacks what a flush has confirmed", "device/ownership.py",
        "header.raw in ours and not vanished_slots(old.bat, bat, may_differ)", "header.raw in ours",
        "device/test_replace.py", "test_a_copy_that_lacks_a_flushed_cluster_is_none_of_ours",
    ),
    _bug(
        "serve on without the mark after a replacement that failed", "device/handover.py",
        "        await _mark_again(top, queue, limit_s)\n"
        "        raise\n\n\nasync def marked_again",
        "        raise\n\n\nasync def marked_again",
        "device/test_replace_refused.py",
        "test_an_image_that_does_not_fit_is_refused_with_its_errno_and_nothing_changes",
    ),
    _bug(
        "write on after the lock was lost", "device/handover.py",
        "    queue.set_aborted(True)\n\n\ndef stand_by", "\n\ndef stand_by",
        "device/test_lock_lost.py", "test_a_target_that_lets_go_of_it_gives_nobody_the_lock",
    ),
    _bug(
        "write on after aborted was cleared, though the lock was lost", "device/handover.py",
        "    if stack.top.lock_lost:\n", "    if False:\n",
        "device/test_lock_lost.py", "test_aborted_is_not_cleared_by_hand_where_the_lock_was_lost",
    ),
    _bug(
        "know of no lost lock where another file of ours had it", "device/handover.py",
        "                each.lock_lost = True\n", "",
        "device/test_lock_lost.py", "test_aborted_is_not_cleared_by_hand_where_the_lock_was_lost",
    ),
    _bug(
        "leave a device whose lock was lost before it was attached to nobody", "device/device.py",
        "            stand_by_without_lock(self.queue)\n", "            pass\n",
        "device/test_lock_lost.py",
        "test_whose_lock_was_lost_before_anybody_promised_to_recover_it_stands_by_as_soon_as_somebody_does",
    ),
    _bug(
        "leave a device whose lock was lost to nobody", "device/handover.py",
        'BackendError(errno.EBUSY, "lock", path)', 'BackendError(errno.ETIMEDOUT, "lock", path)',
        "device/test_lock_lost.py",
        "test_a_device_that_somebody_has_promised_to_recover_stands_by_when_its_lock_is_lost",
    ),
    _bug(
        "forget the replay of a table", "device/instance.py",
        "            await _replay(stack, around, timeout)\n"
        "        return instance",
        "            pass\n"
        "        return instance",
        "device/test_mapper_standby.py", "test_unflushed_writes_are_in_the_new_image_before_standby_clears",
    ),
    # many devices, and large ones
    _bug(
        "let devices come as their storages answer", "cli/configured.py", "turns[index].wait)",
        "trio.lowlevel.checkpoint)", "test_start.py",
        "test_devices_come_in_the_order_of_the_file_whatever_storage_answers_first",
    ),
    _bug(
        "leave an image open that waited for its turn", "device/registry.py",
        "        except BaseException:\n            with trio.CancelScope(deadline",
        "        except PloopError:\n            with trio.CancelScope(deadline", "test_start.py",
        "test_a_start_that_is_cancelled_leaves_no_image_open",
    ),
    _bug(
        "list a device that is on its way out", "device/registry.py",
        "        device = self.devices.pop(name)\n        self.census.fire()\n",
        "        device = self.devices.pop(name)\n", "test_configured.py",
        "test_a_device_is_out_of_the_tree_as_soon_as_it_begins_to_go",
    ),
    _bug(
        "let quick callers keep the event loop from everybody else", "fuse/loop.py", "        if self._turn.is_over:\n",
        "        if False:\n", "fuse/test_loop.py",
        "test_a_quick_caller_is_served_without_the_event_loop_and_others_have_their_turn_now_and_then",
    ),
    _bug(
        "wait in a read for a request that was taken back", "fuse/loop.py",
        "            os.set_blocking(fd, False)\n", "",
        "fuse/test_loop.py", "test_a_task_whose_request_was_taken_back_waits_for_the_next_one",
    ),
    _bug(
        "end the tree with a request that was taken back", "fuse/loop.py", "except BlockingIOError:",
        "except InterruptedError:", "fuse/test_loop.py",
        "test_a_task_whose_request_was_taken_back_waits_for_the_next_one",
    ),
    _bug(
        "look for quick callers though a request waits in a task", "fuse/loop.py",
        "if not self._is_quick or self._is_needed():", "if not self._is_quick:", "fuse/test_loop.py",
        "test_where_a_request_waits_in_a_task_the_event_loop_comes_round_as_if_nobody_were_quick",
    ),
    _bug(
        "remove a device by whose name the kernel still goes", "device/registry.py",
        "        if is_lent:\n", "        if False:\n", "device/test_lent.py",
        "test_a_device_is_not_removed_before_its_name_is_forgotten",
    ),
    _bug(
        "let the kernel keep a name that changes", "fuse/entry.py", "if parent.lend is not None else 0",
        "if parent.lend is not None else KEPT_S", "fuse/test_operations.py",
        "test_the_kernel_keeps_a_name_that_cannot_change_and_asks_for_every_other",
    ),
    _bug(
        "hide that a daemon is dead behind what the kernel keeps", "fuse/entry.py",
        "ROOT_KEPT_S if inode.number == pyfuse3.ROOT_INODE else KEPT_S", "KEPT_S",
        "fuse/test_operations.py", "test_the_kernel_keeps_a_name_that_cannot_change_and_asks_for_every_other",
    ),
    # the tree
    _bug(
        "keep STANDBY_EN after the target let go", "scst/backing.py", "                device.queue.standby.detach()",
        "                pass", "scst/test_devices.py",
        "test_a_disk_may_be_in_scst_twice_and_supports_standby_until_the_last_is_deleted",
    ),
    _bug(
        "let go of a device that only became inactive", "scst/vdisk.py", "        self.active = active\n",
        "        self.active = active\n"
        "        self._bind(self.device if active else None)\n",
        "scst/test_devices.py", "test_closing_the_file_deletes_nothing",
    ),
    _bug(
        "lose the edge that pollers of standby wait for", "sysfs/queue.py",
        "device.queue.standby.state.value, signal=lambda device: device.queue.standby.changed)",
        "device.queue.standby.state.value)", "sysfs/test_queue.py", "test_a_watcher_of_standby_sees_it_go_on_and_off",
    ),
    _bug(
        "let anybody write to any attribute", "sysfs/nodes.py", "(0o200 if self.store else 0)", "0o222",
        "sysfs/test_golden.py", "test_the_tree_is_the_golden_listing",
    ),
    _bug(
        "answer a write of O_SYNC before it is durable", "sysfs/opendisk.py", "bool(flags & os.O_DSYNC)",
        "bool(flags & os.O_APPEND)", "fuse/test_handles.py",
        "test_what_is_written_through_o_sync_or_o_dsync_is_durable_and_nothing_else",
    ),
    _bug(
        "open a disk that was removed", "sysfs/opendisk.py", '            raise NoSuchDevice("the device was removed")',
        "            pass", "fuse/test_handles.py",
        "test_a_disk_that_was_removed_after_its_name_was_looked_up_is_not_opened",
    ),
    _bug(
        "lose a change between looking and waiting", "fuse/handles.py",
        "        self._waiting.take(waiting)\n"
        "        events, _ = self._file.poll()",
        "        events, _ = self._file.poll()\n"
        "        self._waiting.take(waiting)",
        "fuse/test_handles.py", "test_a_change_between_looking_and_waiting_is_told",
    ),
    _bug(
        "keep a file that was closed", "fuse/operations.py", "self._files.pop(fh).release()",
        "self._files[fh].release()", "fuse/test_operations.py", "test_a_file_that_was_released_is_released_once",
    ),
    # blockfuse
    _bug(
        "attach a disk before what the aborted connection writes has landed", "blockfuse/plane.py",
        "        await cut_off.ended.wait()\n", "", "blockfuse/test_planes.py",
        "test_what_an_aborted_connection_still_writes_is_waited_for_in_bounds",
    ),
    _bug(
        "unmount what somebody has mounted over a disk", "blockfuse/mounting.py",
        "        if _number_at(file) != number:", "        if False:", "mounted/test_mounting.py",
        "test_nothing_is_unmounted_but_what_was_mounted_here",
    ),
    _bug(
        "serve a descriptor that somebody else has sent", "blockfuse/mounting.py", "if pid != os.getpid():",
        "if pid == 0:", "mounted/test_mounting.py", "test_a_descriptor_that_somebody_else_sends_is_not_taken",
    ),
    _bug(
        "let the requests of an aborted connection wait on", "blockfuse/plane.py",
        '        self._current.carrier.close()\n        self._become(Connection.ABORTED, "somebody asked for it")',
        '        self._become(Connection.ABORTED, "somebody asked for it")', "blockfuse/test_planes.py",
        "test_an_aborted_connection_stays_mounted_and_the_next_one_takes_its_place",
    ),
    _bug(
        "end a connection under a write that no task waits for", "blockfuse/connection.py",
        "                await self._writes.wait_ended()\n", "", "blockfuse/test_soon.py",
        "test_the_end_of_the_connection_waits_for_it_with_the_file_open",
    ),
    _bug(
        "read the next request over the data of a large write", "blockfuse/buffers.py",
        "        self.leave()\n        return data", "        return data",
        "blockfuse/test_soon.py",
        "test_a_buffer_is_not_used_again_whether_the_write_that_it_holds_has_ended_or_was_given_up",
    ),
    _bug(
        "believe a flush after one of the size that failed", "engine/delta.py",
        "            if error.operation == \"fsync\":\n", "            if False:\n", "engine/test_allocating_soon.py",
        "test_no_flush_is_believed_after_one_of_the_size_that_failed",
    ),
    _bug(
        "take a size for certain that a lost storage has confirmed", "engine/writer.py",
        "        if self.loss is loss:\n            self._top.confirmed_size(size)",
        "        self._top.confirmed_size(size)",
        "engine/test_allocating_soon.py",
        "test_a_size_is_not_certain_if_the_storage_was_lost_while_it_was_synced",
    ),
    _bug(
        "never look again whether room is needed", "engine/room.py",
        "self._whole if is_whole else self._allocator.end_cluster + spare", "1 << 40",
        "engine/test_allocating_soon.py", "test_it_is_noticed_in_time_that_room_is_needed",
    ),
    _bug(
        "forget what was acknowledged after the mark of a flush", "device/unflushed.py",
        "        while self._first_number < mark:\n", "        while self._sealed:\n", "device/test_unflushed.py",
        "test_what_is_kept_is_what_was_acknowledged_after_the_last_mark_that_was_flushed",
    ),
    _bug(
        "write a piece whether the one before it was written or not", "engine/ring.py",
        "_BY_A_WORKER if part == last else _THEN", "_BY_A_WORKER",
        "engine/test_ring_links.py",
        "test_after_a_piece_that_fails_nothing_more_is_done_and_there_is_no_reply",
    ),
    _bug(
        "leave what was copied up to the sync that nobody has asked for yet", "engine/writer.py",
        "                self._top.file.start_writeback()\n", "",
        "engine/test_order.py", "test_a_copy_is_on_its_way_to_the_storage_before_a_sync_is_asked_for",
    ),
    _bug(
        "write back what nobody waits for before a file is closed", "engine/os_file.py",
        "None if self._is_done_with else start_writeback(self._fd)", "start_writeback(self._fd)",
        "engine/test_os_file.py",
        "test_what_is_written_back_is_waited_for_by_the_next_sync_and_by_the_close_of_the_descriptor",
    ),
    _bug(
        "stay on the CPU of the workers", "engine/cpus.py",
        "if _running_on() != self.workers:", "if _running_on() == self.workers:",
        "engine/test_cpus.py",
        "test_a_thread_on_the_workers_cpu_leaves_it_and_may_run_where_it_might_before",
    ),
    _bug(
        "wait for a thread that hangs in a write", "engine/stand_in.py",
        "self._answered.acquire(timeout=self._patience_s)", "self._answered.acquire()", "blockfuse/test_busy.py",
        "test_a_storage_that_hangs_keeps_nobody_waiting_but_who_writes_to_it",
    ),
    _bug(
        "let a thread that was left behind tell of its write", "engine/stand_in.py",
        "        if self.is_left_behind:\n            self._turn.release()\n            made",
        "        if self.is_left_behind and made.tell() is None:\n            self._turn.release()\n            made",
        "engine/test_stand_in.py",
        "test_the_loop_goes_on_without_who_hangs_and_hears_of_the_write_when_it_has_ended",
    ),
    _bug(
        "begin in a thread that nobody waits for any more", "engine/stand_in.py",
        "                if self.is_left_behind:\n                    return\n                self._turn_ns",
        "                self._turn_ns", "engine/test_stand_in.py",
        "test_who_was_left_behind_before_it_began_never_begins",
    ),
    _bug(
        "tell of a write that failed without the event loop", "engine/stand_in.py",
        "        if made.has_failed:", "        if not made:", "engine/test_stand_in.py",
        "test_after_a_piece_that_fails_nothing_more_is_done_nor_answered_and_the_loop_tells_of_it",
    ),
    _bug(
        "forget the writes of threads that were left behind", "engine/ring.py",
        "            self._tell_of_left_behind()\n", "            pass\n", "engine/test_stand_in.py",
        "test_of_what_is_acknowledged_by_who_was_left_behind_hears_who_looks",
    ),
    _bug(
        "begin a write that hangs in a thread when it has ended, and not before", "engine/stand_in.py",
        "                    self._made.enter(hangs=True)\n", "", "blockfuse/test_busy.py",
        "test_a_storage_that_hangs_keeps_nobody_waiting_but_who_writes_to_it",
    ),
    _bug(
        "read the next request over what a thread that hangs has yet to write", "blockfuse/writes.py",
        "            BUFFERS.leave()  #", "            pass  #", "blockfuse/test_busy.py",
        "test_what_a_thread_has_yet_to_write_when_it_hangs_is_nobodys_to_change",
    ),
    _bug(
        "count the time of a write that hangs in a thread from when it is left behind", "device/soon.py",
        "since_ns = reply.maker.since_ns", "since_ns = None", "device/test_made.py",
        "test_it_takes_the_time_from_when_it_was_begun_and_so_does_one_that_hangs",
    ),
    _bug(
        "keep nothing of what a thread has written and acknowledged", "device/turn.py",
        "            self._record(self._writes, self._written_bytes, self._stack)\n", "", "blockfuse/test_busy.py",
        "test_he_is_served_by_a_thread_after_some_writes_and_the_thread_ends_with_his_last",
    ),
    _bug(
        "record what a thread has made after the write that hangs was begun", "blockfuse/writes.py",
        "        turn.settle()\n        kept", "        kept", "blockfuse/test_busy.py",
        "test_what_a_thread_has_made_before_it_hangs_is_recorded_before_that_is_begun",
    ),
    _bug(
        "forget what a thread made last in its turn", "blockfuse/busy.py",
        "they are the loop's\n                self._settle()\n", "they are the loop's\n", "blockfuse/test_busy.py",
        "test_what_a_thread_has_made_is_recorded_when_it_ends_and_before_anybody_else_can_look",
    ),
    _bug(
        "let a thread write to a device that is read-only", "device/device.py",
        "fd = None if self.read_only else self.queue.stack.thread_fd()", "fd = self.queue.stack.thread_fd()",
        "device/test_made.py", "test_nothing_that_is_read_only_is_for_a_thread_to_write",
    ),
    _bug(
        "leave it open for a whole turn how much is kept", "device/turn.py",
        "            self._room_bytes -= length + CHANGE_BYTES\n", "", "device/test_made.py",
        "test_what_was_made_in_a_turn_leaves_less_room_in_it",
    ),
    _bug(
        "record what a thread makes when its turn ends, however long it is", "device/turn.py",
        ">= _TOGETHER or self._written_bytes >= _TOGETHER_BYTES", "< 0", "device/test_made.py",
        "test_a_long_turn_is_noted_before_its_end",
    ),
    _bug(
        "forget the cluster that a thread has allocated", "engine/writer.py",
        "            self._entries.took(taken)\n", "", "device/test_made.py",
        "test_it_is_noted_as_any_write_and_so_is_what_follows",
    ),
    _bug(
        "give the cluster that a thread has allocated to the next one, too", "engine/aims.py",
        "            self._next += 1\n", "", "engine/test_aims.py",
        "test_one_hole_after_the_other_has_the_next_clean_cluster_as_long_as_there_are_some",
    ),
    _bug(
        "give what a thread has allocated to whoever asks later", "engine/writer.py",
        "            self._take_clean(len(taken), whole)\n", "",
        "device/test_made.py", "test_it_is_noted_as_any_write_and_so_is_what_follows",
    ),
    _bug(
        "have a thread write to a hole beyond what the file durably has", "engine/aims.py",
        "or self._next == self._clean_end or slot", "or slot", "engine/test_aims.py",
        "test_one_hole_after_the_other_has_the_next_clean_cluster_as_long_as_there_are_some",
    ),
    _bug(
        "have a thread give a cluster to a hole that somebody else is filling", "engine/aims.py",
        " or slot in self._claimed", "", "engine/test_aims.py",
        "test_who_fills_or_frees_a_cluster_has_it_to_himself",
    ),
    _bug(
        "aim at a cluster of a lower level as if it were a hole", "engine/aims.py",
        "if level != HOLE_LEVEL or", "if", "engine/test_aims.py",
        "test_what_is_aimed_is_what_a_write_does_and_nothing_else_is",
    ),
    _bug(
        "call clean what was freed, or a gap", "image/allocator.py",
        "        if self._released or self._gaps:\n            return range(0)\n", "", "image/test_allocator.py",
        "test_clean_is_what_will_be_allocated_next_and_never_held_anything",
    ),
    _bug(
        "call durable what a thread has written", "engine/writer.py",
        "        self.unconfirmed.made(count)\n", "",
        "device/test_made.py", "test_it_is_noted_as_any_write_and_so_is_what_follows",
    ),
    _bug(
        "leave whom a bug meets in a thread without an answer", "blockfuse/transfers.py",
        "        except Exception:  # a bug, which `answered` meets again\n            return None\n",
        "        except Exception:\n            raise\n", "blockfuse/test_busy.py",
        "test_a_bug_that_a_thread_meets_before_it_writes_costs_an_eio",
    ),
    _bug(
        "let a thread acknowledge what may have to wait for a flush", "device/turn.py",
        " or length + CHANGE_BYTES >= self._room_bytes", "",
        "blockfuse/test_busy.py", "test_at_the_bound_of_what_is_kept_he_waits_for_a_flush_as_everybody",
    ),
    _bug(
        "let a thread write past a rule of injection", "engine/inject/filter.py",
        "    def thread_fd(self) -> int | None:\n        return None\n",
        "    def thread_fd(self) -> int | None:\n        return self._inner.thread_fd()\n", "blockfuse/test_busy.py",
        "test_a_rule_of_injection_meets_what_a_thread_would_write",
    ),
    _bug(
        "let threads hang without a bound", "engine/stand_in.py",
        "len(ring.left_behind) < LEFT_BEHIND", "True", "engine/test_stand_in.py",
        "test_while_so_many_hang_nobody_stands_in_any_more",
    ),
    _bug(
        "answer a write of a thread before its bytes are written", "engine/made_write.py",
        "        if not is_whole:\n            self._replied = -errno.ECANCELED\n        elif answers:",
        "        if answers:", "engine/test_stand_in.py",
        "test_after_a_piece_that_fails_nothing_more_is_done_nor_answered_and_the_loop_tells_of_it",
    ),
    _bug(
        "write the entry of the map though the data were not written", "engine/made_write.py",
        "_written(self._fd, data, offset) if is_whole else -errno.ECANCELED", "_written(self._fd, data, offset)",
        "engine/test_stand_in.py",
        "test_after_a_piece_that_fails_nothing_more_is_done_nor_answered_and_the_loop_tells_of_it",
    ),
    _bug(
        "keep what a thread leaves for the ring until somebody asks for more", "blockfuse/connection.py",
        "self._transfers.answered(count, None)", "self._transfers.answered(count, self._ring)",
        "blockfuse/test_busy.py",
        "test_a_thread_begins_nothing_for_the_ring_that_somebody_else_would_have_to_hand_over",
    ),
    _bug(
        "let a thread serve whose writes lie beside others", "blockfuse/connection.py",
        "not self._waiting and self._has_ring_ended()\n", "self._has_ring_ended() is not None\n",
        "blockfuse/test_busy.py", "test_who_waits_for_another_request_meanwhile_is_not_served_by_a_thread",
    ),
    _bug(
        "let a thread make a write before the ring has told of those that came earlier", "blockfuse/connection.py",
        "        while self._writes:\n", "        while False:\n", "blockfuse/test_busy.py",
        "test_nothing_is_made_by_a_thread_before_the_ring_has_told_of_what_it_was_given",
    ),
    _bug(
        "leave whose writes were made before one that hangs without their answers", "blockfuse/busy.py",
        "                self._answer()\n        return is_quick", "        return is_quick",
        "blockfuse/test_busy.py",
        "test_whose_writes_were_made_before_the_one_that_hangs_have_their_answers",
    ),
    _bug(
        "have a thread serve for ever whoever wrote once", "blockfuse/busy.py",
        "                if self._reads >= _ONLY_READS:\n", "                if not self._writes:\n",
        "blockfuse/test_busy.py", "test_who_goes_on_with_nothing_but_reads_is_the_loops_again",
    ),
    _bug(
        "let a thread serve on when the event loop wakes", "engine/stand_in.py",
        "        self._is_asleep = self._is_endless = False\n        if", "        self._is_asleep = False\n        if",
        "engine/test_stand_in.py",
        "test_while_the_loop_sleeps_it_works_without_an_end_and_when_the_loop_wakes_for_no_longer_than_a_turn",
    ),
    _bug(
        "let a thread serve until nobody asks beside others that want the place of the event loop, too",
        "engine/stand_in.py", "is_asleep and is_only\n", "is_asleep\n", "engine/test_stand_in.py",
        "test_several_have_turns_one_after_the_other_though_the_loop_sleeps",
    ),
    _bug(
        "let the first thread that serves have the place of the event loop to itself", "engine/stand_in.py",
        "            self._wanting.rotate(-1)\n", "", "engine/test_stand_in.py",
        "test_several_have_turns_one_after_the_other_though_the_loop_sleeps",
    ),
    _bug(
        "let the event loop sleep when a thread has served to the end", "engine/stand_in.py",
        "                    self._wake(_nothing)\n", "                    pass\n", "engine/test_stand_in.py",
        "test_it_works_in_the_loops_place_and_the_result_is_the_works",
    ),
    _bug(
        "let the event loop sleep while a thread hangs", "engine/stand_in.py",
        "trio.move_on_after(LENT_US / 1e6)", "trio.CancelScope()", "engine/test_stand_in.py",
        "test_the_loop_goes_on_without_who_hangs_and_hears_of_the_write_when_it_has_ended",
    ),
    _bug(
        "let a thread serve a connection that is to end", "blockfuse/connection.py",
        "            self._is_ending = True\n            self._busy.recall()\n", "            self._is_ending = True\n",
        "blockfuse/test_busy.py", "test_a_connection_that_is_to_end_is_served_by_no_thread_any_more",
    ),
    _bug(
        "watch the event loop for ever that has once lent its place", "engine/stand_in.py",
        "            trio.lowlevel.remove_instrument(self)\n", "            pass\n", "engine/test_stand_in.py",
        "test_a_loop_that_lends_its_place_to_nobody_is_not_watched",
    ),
    _bug(
        "keep waiting what a thread that goes on has left to the event loop", "engine/stand_in.py",
        "        if self._result is not None or self._left:\n", "        if self._result is not None:\n",
        "engine/test_stand_in.py", "test_what_is_left_to_the_loop_does_not_wait_for_the_end_of_the_work",
    ),
    _bug(
        "look no longer for who writes much", "blockfuse/busy.py",
        "        self._bytes = length\n", "", "blockfuse/test_busy.py",
        "test_whose_writes_are_large_is_looked_for_longer_by_the_thread_too",
    ),
    _bug(
        "look no longer for who reads much", "blockfuse/connection.py",
        "                self._moved_bytes = BURST_BYTES - left_bytes\n", "", "blockfuse/test_soon.py",
        "test_who_has_much_moved_is_looked_for_longer",
    ),
    _bug(
        "keep a thread while nobody asks for anything", "blockfuse/connection.py",
        "                    self._busy.end()\n", "", "blockfuse/test_busy.py",
        "test_no_thread_stays_when_the_last_thing_that_it_did_goes_on_in_a_task",
    ),
    _bug(
        "send the answers of what a thread makes one by one", "blockfuse/busy.py",
        "self._is_alone = not self._asked.poll(0)", "self._asked.poll(0)", "blockfuse/test_busy.py",
        "test_of_several_at_a_time_he_makes_all_and_sends_their_answers_together",
    ),
    _bug(
        "answer a write that has failed with the others", "engine/stand_in.py",
        "            made.note()\n            if", "            made.note()\n        if True:\n            if",
        "engine/test_stand_in.py", "test_one_that_fails_has_no_answer_with_others",
    ),
    _bug(
        "send no answer of a thread that was left behind with others' answers", "engine/stand_in.py",
        "            made.reply()\n", "", "engine/test_stand_in.py",
        "test_one_that_hangs_is_answered_by_itself_whatever_it_was_to_be_sent_with",
    ),
    _bug(
        "go on with a write of which the kernel took the beginning alone", "engine/ring.py",
        "            self._hold_rest()\n", "            pass\n",
        "engine/test_ring_links.py",
        "test_what_the_kernel_has_not_taken_is_not_done_if_what_comes_before_it_fails",
    ),
    _bug(
        "answer a write of which the kernel has not got all", "engine/ring_write.py",
        "        self._begun -= pieces\n", "        self._begun -= pieces\n        pieces = 0\n",
        "engine/test_ring_links.py",
        "test_a_write_that_the_kernel_takes_part_by_part_is_done_and_answered_as_if_it_had_taken_it_whole",
    ),
    _bug(
        "free the bytes of what the kernel takes later", "engine/ring_write.py",
        "self._ended, self._holds, self._begun = ended, holds, pieces", "self._ended, self._begun = ended, pieces",
        "engine/test_ring_links.py",
        "test_what_the_kernel_has_not_taken_waits_for_what_it_has_and_holds_up_no_other",
    ),
    _bug(
        "tell of an older loss instead of what the store answers", "engine/writer.py",
        "if self.loss is not None and error.errno == errno.ETIMEDOUT:", "if self.loss is not None:",
        "device/test_lost_meanwhile.py",
        "test_a_store_that_is_gone_is_told_of_by_its_own_errno_though_something_was_given_up_before",
    ),
    _bug(
        "leave an unchanged image as long as it was made ahead", "engine/delta.py",
        "if self._size_uncertain or self.file_size != self._closing_size:", "if self._size_uncertain:",
        "engine/test_end_of_file.py",
        "test_an_image_that_was_made_longer_and_not_changed_is_closed_as_it_was_found",
    ),
    _bug(
        "leave a reply to the kernel though what is kept is full with those in flight", "device/soon.py",
        "self._unflushed.room_bytes - self._kept_bytes", "self._unflushed.room_bytes",
        "device/test_replies.py",
        "test_none_is_left_to_the_storage_by_which_with_all_in_flight_what_is_kept_would_be_full",
    ),
    _bug(
        "write a page of the map over an entry in flight", "engine/writer.py",
        "        await self._entries.wait_none()", "        await trio.lowlevel.checkpoint()",
        "engine/test_allocating_soon.py",
        "test_a_page_of_the_map_is_not_written_before_the_entries_in_flight_and_then_it_has_them",
    ),
    _bug(
        "give the number of a closed connection to others while replies are under way", "blockfuse/writes.py",
        "        if self._left:\n            os.dup2", "        if self._fd < 0:\n            os.dup2",
        "blockfuse/test_replies.py",
        "test_the_number_of_a_closed_connection_is_no_other_file_s_until_the_last_reply_is_over",
    ),
    _bug(
        "look at a device before it knows what the kernel has acknowledged", "fuse/answers.py",
        "        hear()\n", "", "fuse/test_answers.py",
        "test_what_the_kernel_has_acknowledged_by_itself_is_known_before_a_handler_looks",
    ),
    _bug(
        "look at the next request before what the kernel has acknowledged is kept", "blockfuse/connection.py",
        "                self._hear()  # what", "                pass  # what",
        "blockfuse/test_replies.py",
        "test_what_the_kernel_has_acknowledged_is_kept_before_the_next_request_is_looked_at",
    ),
    _bug(
        "answer a write that the storage has as if it were undone", "blockfuse/waiting.py",
        "_MAY_BE_LATE = frozenset({Op.READ, Op.FLUSH})", "_MAY_BE_LATE = frozenset(Op)",
        "blockfuse/test_connection.py",
        "test_a_change_that_the_storage_has_is_waited_for_whoever_is_told_to_end",
    ),
    _bug(
        "say of a write that was tried that it was not done", "device/waiting.py",
        "is_undone = ticket.op is op and not (ticket.was_tried and op.is_write)", "is_undone = ticket.op is op",
        "blockfuse/test_connection.py",
        "test_a_write_that_the_storage_had_before_it_was_held_is_not_said_to_be_undone",
    ),
    _bug(
        "fail who is held for any signal", "blockfuse/ending.py", "& ~masks[\"SigBlk\"] & _TO_END)",
        "& ~masks[\"SigBlk\"])", "blockfuse/test_ending.py", "test_others_do_not",
    ),
    _bug(
        "answer twice who was told to end while he read", "blockfuse/connection.py",
        "        if pending.is_answered:\n            return\n", "", "blockfuse/test_connection.py",
        "test_what_can_do_no_harm_later_is_not_waited_for_in_the_storage",
    ),
    _bug(
        "serve a busy disk until it is idle", "blockfuse/connection.py", "for taken in range(BURST_REQUESTS):",
        "for taken in itertools.count():", "blockfuse/test_connection.py", "test_a_busy_disk_leaves_others_their_turn",
    ),
    _bug(
        "punch a hole for zeroes that are to keep their space", "blockfuse/front.py",
        "unmap=bool(mode & PUNCH_HOLE)", "unmap=True", "blockfuse/test_front.py",
        "test_a_hole_gives_space_back_and_zeroes_keep_it",
    ),
    _bug(
        "look but once at who was interrupted", "blockfuse/waiting.py",
        "            pending.is_interrupted = True\n", "",
        "blockfuse/test_connection.py",
        "test_any_other_signal_leaves_him_held_until_he_is_told_to_end",
    ),
)
