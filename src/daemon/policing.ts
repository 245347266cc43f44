/** Puts the policies of a served volume together: what was kept of them, when they run, what they do. */

import type { Timer } from '../base/index.ts';
import { copiesOf } from './copies.ts';
import { errorCode } from './errors.ts';
import { factsOf, type ActionOptions, performPolicy } from './policy-actions.ts';
import type { PolicedVolume } from './policy-config.ts';
import { readPolicyRecords, writePolicyRecords } from './policy-record.ts';
import { type PolicyEvent, PolicyRunner } from './policy-runner.ts';
import { pruneStore } from './store-prune.ts';
import type { VolumeHost } from './volume-host.ts';

export interface PolicingOptions extends Pick<ActionOptions, 'readKey'> {
  /** The program of the command line, which removes what a store does not keep. */
  readonly program: string;
  readonly timer: Timer;
  /** Is told of runs, and of copies that are too few. */
  readonly tell: (event: PolicyEvent) => void;
}

/** Runs the policies of a volume until the runner is stopped, and lets `status` tell of them. */
export function startPolicies(
  host: VolumeHost,
  config: Pick<PolicedVolume, 'policies' | 'minimumCopies'>,
  { readKey, program, timer, tell }: PolicingOptions,
): PolicyRunner {
  const { volume, options } = host;
  const { directory, volumeId, name } = volume.identity;
  const { clock } = options;
  const warn = (sentence: string): void => options.warn?.(sentence);
  const runner = new PolicyRunner({
    volume: { name, volumeId },
    clock,
    timer,
    records: readPolicyRecords(directory, volumeId, warn),
    save: (records) => writePolicyRecords(directory, records),
    perform: (policy, signal) =>
      performPolicy(host, policy, signal, { readKey, prune: (request) => pruneStore(program, request) }),
    stateOf: (error) => (errorCode(error) === 'cancelled' ? 'cancelled' : 'failed'),
    factsOf: (policy, lastDone) => factsOf(host, policy, lastDone),
    isBusy: () => host.sessions.list().length > 0,
    copiesOf: () => copiesOf(volume.status()),
    tell,
    warn,
  });
  host.policies = () => runner.status();
  runner.setConfig(config);
  return runner;
}
