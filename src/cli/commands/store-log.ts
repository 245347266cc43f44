/** `cowbell store log`: the sessions that have ended, as the store's log has them. */

import type { Argv } from 'yargs';
import { formatSize } from '../../base/index.ts';
import { type LoggedSession, readSessionLog } from '../../blockset/index.ts';
import type { CommandContext, GlobalOptions, Run } from '../command.ts';
import { addKeyOptions } from '../key-options.ts';
import { table } from '../output.ts';
import { openStore, STORE, type StoreOptions } from '../store-options.ts';

export function addLog(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'log <store>',
    'List the backups to a store that have ended, oldest first, and why those failed that did',
    (command) => addKeyOptions(command.positional('store', STORE)).example('$0 store log /backup/store', ''),
    (options) => run<StoreOptions>(options, log),
  );
}

async function log(context: CommandContext, options: StoreOptions): Promise<void> {
  const { output } = context;
  const store = await openStore(context, options);
  const sessions = await readSessionLog(store.path);
  if (output.json) for (const session of sessions) output.report({ event: 'session', ...session });
  else if (sessions.length === 0) output.report({ event: 'none' }, `Store ${store.path} has no log yet`);
  else {
    const heads = ['ENDED', 'SESSION', 'VOLUME', 'OUTCOME', 'SECONDS', 'SET', 'LEVEL', 'STORED', ''];
    output.report({ event: 'none' }, ...table(heads, sessions.map(rowOf)));
  }
}

function rowOf(session: LoggedSession): readonly string[] {
  const { volume, volumeId, outcome, set, level, bytesStored, error } = session;
  return [
    new Date(session.endedMs).toISOString(),
    session.session,
    volume ?? volumeId,
    outcome,
    ((session.endedMs - session.startedMs) / 1000).toFixed(1),
    set ?? '-',
    level ?? '-',
    bytesStored === undefined ? '-' : formatSize(bytesStored),
    error?.message ?? error?.code ?? '',
  ];
}
