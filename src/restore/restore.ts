/**
 * A restore from top to bottom: targets, remap table, plan, write.
 *
 *     chain view --> remap table --> verify, write --> target devices
 *
 * What can be refused is refused before the first write, and leaves nothing behind. After the first write a
 * failure leaves incomplete targets, which its error names; files created for the restore then stay, for
 * what they hold may be all there is.
 */

import { planRestore, type RestorePlan } from './planner.ts';
import type { ReadPlanEntry, RestoreSource } from './restore-source.ts';
import { openTargets, type OpenTargetsOptions, type TargetLayout, type TargetRequest } from './targets.ts';
import { type RestoreOptions, type RestoreResult, writeRestore } from './writer.ts';

/**
 * Restores a set, or the part of it that `layout` names, onto targets and makes it durable.
 *
 * @param layout rows of a remap table, or the volume over the targets in sequence when absent.
 * @throws {RestoreError} with any of its codes; only `target-failed` and `cancelled` can come after the
 *   first write.
 * @throws {RestoreCorruptionError} when the store is damaged.
 */
export async function restore<Entry extends ReadPlanEntry>(
  source: RestoreSource<Entry>,
  targets: readonly TargetRequest[],
  options: OpenTargetsOptions & RestoreOptions & { readonly layout?: TargetLayout },
): Promise<RestoreResult> {
  const layout = options.layout ?? { sequenceBytes: source.sizeBytes };
  const opened = await openTargets(targets, layout, options);
  let plan: RestorePlan;
  try {
    plan = planRestore(source, opened.table, opened.targets);
  } catch (error) {
    await opened.discard();
    throw error;
  }
  try {
    return await writeRestore(source, plan, options);
  } finally {
    await opened.close();
  }
}
