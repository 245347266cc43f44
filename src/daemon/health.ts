/**
 * What is wrong with a volume, from what `status` tells, for `status --check`: problems, for which somebody has to look,
 * and warnings. Pure. Members that a status does not have are no problem: what there is depends on the volume.
 */

import { formatSize } from '../base/index.ts';
import { listOf, recordOf, type Untyped } from './untyped.ts';

export interface Finding {
  readonly severity: 'problem' | 'warning';
  /** What it is about, one word for each kind. */
  readonly kind: string;
  /** One sentence. */
  readonly message: string;
}

/** @param nowMs when the status was asked for: what should have begun before is overdue. */
export function findingsOf(status: Untyped, nowMs: number): readonly Finding[] {
  return [
    ...stateFindings(status),
    ...memberFindings(status),
    ...copyFindings(status),
    ...listOf(status['policies']).flatMap((policy) => policyFindings(policy, nowMs)),
  ];
}

function problem(kind: string, message: string): Finding {
  return { severity: 'problem', kind, message };
}

function warning(kind: string, message: string): Finding {
  return { severity: 'warning', kind, message };
}

function stateFindings(status: Untyped): readonly Finding[] {
  const poisoned = recordOf(status['poisoned']);
  const recovery = recordOf(status['recovery']);
  const waiting = Number(status['writesWaiting'] ?? 0);
  const { missingTracks, trackCount } = recovery;
  return [
    ...(poisoned['reason'] === undefined
      ? []
      : [problem('poisoned', `It takes no writes until volume check: ${text(poisoned['reason'])}`)]),
    ...(typeof missingTracks === 'number'
      ? [
          problem(
            'recovery',
            `Its recovery is not complete: ${missingTracks} of ${text(trackCount)} tracks are missing`,
          ),
        ]
      : []),
    ...listOf(status['snapshots']).flatMap(({ state, name, reason }) =>
      state === 'damaged' ? [problem('snapshot', `Snapshot ${text(name)} is damaged: ${text(reason)}`)] : [],
    ),
    ...(waiting > 0
      ? [
          warning(
            'writes-waiting',
            `${waiting} ${waiting === 1 ? 'write is' : 'writes are'} waiting for room`,
          ),
        ]
      : []),
  ];
}

function memberFindings(status: Untyped): readonly Finding[] {
  const { mirror, lost, missingTracks } = recordOf(status['mirroring']);
  const { mirror: side, mirrorLost } = recordOf(status['recovery']);
  const deltas = recordOf(status['deltas']);
  const homes = listOf(status['parts']).flatMap(({ members }) => listOf(members));
  return [
    ...(lost === undefined ? [] : [problem('mirror', `Mirror ${text(mirror)} is lost: ${text(lost)}`)]),
    ...(mirrorLost === undefined
      ? []
      : [problem('mirror', `Mirror ${text(side)} is lost: ${text(mirrorLost)}`)]),
    ...(lost === undefined && typeof missingTracks === 'number' && missingTracks > 0
      ? [warning('mirror', `Mirror ${text(mirror)} is being filled: ${missingTracks} tracks are missing`)]
      : []),
    ...homes.flatMap((member) => memberFinding('home', member, ['in-sync'], ['rebuilding'])),
    ...listOf(deltas['members']).flatMap((member) =>
      memberFinding('deltas', member, ['healthy'], ['recreating']),
    ),
    ...(deltas['brokenOff'] === undefined
      ? []
      : [
          problem(
            'deltas',
            `What is not backed up is in the home only, until the next backup: ${text(deltas['brokenOff'])}`,
          ),
        ]),
  ];
}

function memberFinding(
  kind: 'home' | 'deltas',
  { place, state, reason }: Untyped,
  good: readonly unknown[],
  healing: readonly unknown[],
): readonly Finding[] {
  if (state === undefined || good.includes(state)) return [];
  const what = kind === 'home' ? 'Member of the home' : 'Member of the delta store';
  const message = `${what} ${text(place)} is ${text(state)}${reason === undefined ? '' : `: ${text(reason)}`}`;
  return [healing.includes(state) ? warning(kind, message) : problem(kind, message)];
}

function copyFindings(status: Untyped): readonly Finding[] {
  const minimum = status['minimumCopies'];
  const { count, where } = recordOf(recordOf(status['copies'])['notBackedUp']);
  if (typeof minimum !== 'number' || typeof count !== 'number' || count >= minimum) return [];
  const places = Array.isArray(where) ? where.join(', ') : '';
  const changed = Math.max(
    0,
    ...listOf(status['consumers']).map(({ changedTracks }) => Number(changedTracks ?? 0)),
  );
  const size = formatSize(changed * Number(status['trackSizeBytes'] ?? 0));
  const much = changed === 0 ? '' : `, up to ${size} of it`;
  return [
    problem(
      'copies',
      `What is not backed up yet${much} is there ${count === 1 ? 'once' : `${count} times`} (${places}), wanted ${minimum} copies`,
    ),
  ];
}

function policyFindings(policy: Untyped, nowMs: number): readonly Finding[] {
  const name = text(policy['name']);
  const last = listOf(policy['outcomes']).at(-1) ?? {};
  const { state, reason, warning: after, endedMs } = last;
  const at = typeof endedMs === 'number' ? ` at ${new Date(endedMs).toISOString()}` : '';
  const { beginByMs } = policy;
  const isLate = policy['state'] !== 'running' && typeof beginByMs === 'number' && beginByMs < nowMs;
  const failed = `Policy ${name} ${state === 'failed' ? 'failed' : 'was broken off'}${at}: ${text(reason)}`;
  return [
    ...(state === 'failed' || state === 'interrupted' ? [problem('policy', failed)] : []),
    ...(state === 'cancelled' ? [warning('policy', `Policy ${name} was cancelled${at}`)] : []),
    ...(state === 'done' && after !== undefined
      ? [problem('policy', `Policy ${name} was done${at}, and then: ${text(after)}`)]
      : []),
    ...(isLate
      ? [problem('overdue', `Policy ${name} is overdue, wanted by ${new Date(beginByMs).toISOString()}`)]
      : []),
  ];
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : (JSON.stringify(value) ?? 'not known');
}
