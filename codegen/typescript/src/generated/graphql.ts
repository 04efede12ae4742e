/** Internal type. DO NOT USE DIRECTLY. */
type Exact<T extends { [key: string]: unknown }> = { [K in keyof T]: T[K] };
/** Internal type. DO NOT USE DIRECTLY. */
export type Incremental<T> = T | { [P in keyof T]?: P extends ' $fragmentName' | '__typename' ? T[P] : never };
import type { DocumentNode } from 'graphql';
import { gql } from '../document.js';
export type CapsuleFilter = {
  /** Those that have all of these. */
  labels?: Record<string, string> | null | undefined;
  /** Part of the name, or the whole id. */
  search?: string | null | undefined;
  /** Those in one of these states; all but the stopped ones if absent. */
  states?: Array<CapsuleState> | null | undefined;
  /** Id or name of their template. */
  template?: string | null | undefined;
};

export type CapsuleState =
  /** Cannot be used; the cause says why. */
  | 'ERROR'
  /** Its host is out of reach; it comes back when the host does. */
  | 'MISSING'
  /** On disk, with everything in its memory. */
  | 'PAUSED'
  | 'PAUSING'
  /** Written down; no host was chosen yet. */
  | 'PENDING'
  | 'RESUMING'
  | 'RUNNING'
  | 'SNAPSHOTTING'
  | 'STARTING'
  /** Gone: destroyed, or lost. */
  | 'STOPPED'
  | 'STOPPING';

export type CreateCapsuleInput = {
  /** When it is paused, a request to one of its ports lets it go on; otherwise such requests are refused. */
  autoResume?: boolean | null | undefined;
  diskMib?: number | null | undefined;
  /** Everything outside may be reached if absent. */
  egress?: EgressPolicyInput | null | undefined;
  /** For every process in it, after the template's. */
  env?: Array<EnvVarInput> | null | undefined;
  /** A repeat with the same key and input answers with the same capsule. */
  idempotencyKey?: string | null | undefined;
  labels?: Record<string, string> | null | undefined;
  memoryMib?: number | null | undefined;
  name?: string | null | undefined;
  /** Id or name; the platform's `minimal` if absent. */
  template?: string | null | undefined;
  /** Paused after this long without activity; 0 = never, which is the default. */
  timeoutSec?: number | null | undefined;
  vcpus?: number | null | undefined;
};

/**
 * What the capsule may reach outside. What no capsule may reach (its host and the host's networks, other capsules,
 * link-local addresses) stays out of reach whatever is allowed here.
 */
export type EgressPolicyInput = {
  /** IPv4 addresses, CIDRs, and host names, `*.example.com` standing for every name below. They go before `deny`. */
  allow?: Array<string> | null | undefined;
  deny?: Array<string> | null | undefined;
  /** Nothing but what `allow` names. */
  denyAll?: boolean | null | undefined;
};

export type EnvVarInput = {
  name: string;
  /** Of a new capsule: its forks do not get the value unless they are asked to, and no snapshot keeps it. */
  secret?: boolean | null | undefined;
  value: string;
};

export type ExecInput = {
  argv?: Array<string> | null | undefined;
  capsuleId: string;
  /** Run by `/bin/sh -c`; or give `argv`. */
  command?: string | null | undefined;
  /** Absolute, or relative to the user's home; the home if absent. */
  cwd?: string | null | undefined;
  env?: Array<EnvVarInput> | null | undefined;
  /** Count as activity while it runs, even with no one attached (startProcess). */
  keepAwake?: boolean | null | undefined;
  stdin?: string | null | undefined;
  /** A name of its own, unique among the living; `proc-` and eight digits if absent. */
  tag?: string | null | undefined;
  /** The whole process group is killed after this; 0 = never. */
  timeoutSec?: number | null | undefined;
  /** A name or a numeric uid; the template's default if absent. */
  user?: string | null | undefined;
};

export type FileChangeKind =
  /** Mode or owner. */
  | 'ATTRIBUTES'
  | 'CREATED'
  | 'MODIFIED'
  /** Within what is watched. Of a move over its edge one side is seen, as created or removed. */
  | 'MOVED'
  | 'REMOVED';

export type FileKind =
  | 'DIRECTORY'
  | 'FILE'
  /** A device, a pipe, a socket. */
  | 'OTHER'
  | 'SYMLINK';

/** What a URL of a file is for. */
export type FileMethod =
  | 'GET'
  | 'PUT';

/** How far back. Points are 500 ms apart up to 10 minutes, 30 s up to 2 hours, 5 minutes up to a day. */
export type MetricsRange =
  | 'H1'
  | 'H2'
  | 'H6'
  | 'H12'
  | 'H24'
  | 'M5'
  | 'M10';

export type OpenPtyInput = {
  capsuleId: string;
  /** Hang up when it has said nothing and nobody has followed it for two minutes. */
  closeWhenIdle?: boolean | null | undefined;
  columns?: number | null | undefined;
  /** Run by `/bin/sh -c`; the user's shell if absent. */
  command?: string | null | undefined;
  /** Absolute, or relative to the user's home; the home if absent. */
  cwd?: string | null | undefined;
  env?: Array<EnvVarInput> | null | undefined;
  rows?: number | null | undefined;
  /** A name of its own, unique among the living; `proc-` and eight digits if absent. */
  tag?: string | null | undefined;
  /** A name or a numeric uid; the template's default if absent. */
  user?: string | null | undefined;
};

/** The first byte wanted of each stream; from the oldest byte still held where absent. */
export type OutputCursor = {
  pty?: string | null | undefined;
  stderr?: string | null | undefined;
  stdout?: string | null | undefined;
};

export type OutputStream =
  | 'PTY'
  | 'STDERR'
  | 'STDOUT';

export type Signal =
  | 'SIGCONT'
  | 'SIGHUP'
  | 'SIGINT'
  | 'SIGKILL'
  | 'SIGQUIT'
  | 'SIGSTOP'
  | 'SIGTERM'
  | 'SIGUSR1'
  | 'SIGUSR2'
  | 'SIGWINCH';

export type TemplateFilter = {
  /** Part of the name. */
  search?: string | null | undefined;
};

export type TemplateKind =
  /** A disk. */
  | 'IMAGE'
  /** A disk and the memory that goes with it. */
  | 'SNAPSHOT';

export type CapsuleFragment = { __typename: 'Capsule', id: string, name: string | null, state: CapsuleState, vcpus: number, memoryMib: number, diskMib: number, timeoutSec: number, autoResume: boolean, labels: Record<string, string>, createdAt: string, startedAt: string | null, lastActiveAt: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null, template: { __typename: 'Template', id: string, name: string } };

export type TemplateFragment = { __typename: 'Template', id: string, name: string, kind: TemplateKind, vcpus: number, memoryMib: number, diskMib: number, sizeBytes: string | null, sourceCapsuleId: string | null, createdAt: string };

export type MetricPointFragment = { __typename: 'CapsuleMetricPoint', at: string, cpuPercent: number, memoryBytes: string, diskBytes: string };

export type ViewerQueryVariables = Exact<{ [key: string]: never; }>;


export type ViewerQuery = { __typename: 'Query', viewer: { __typename: 'Viewer', user: { __typename: 'User', id: string, name: string, email: string } | null, team: { __typename: 'Team', id: string, name: string, slug: string } | null, apiKey: { __typename: 'ApiKey', id: string, name: string, prefix: string, expiresAt: string | null } | null } };

export type CapsuleQueryVariables = Exact<{
  id: string;
}>;


export type CapsuleQuery = { __typename: 'Query', capsule: { __typename: 'Capsule', id: string, name: string | null, state: CapsuleState, vcpus: number, memoryMib: number, diskMib: number, timeoutSec: number, autoResume: boolean, labels: Record<string, string>, createdAt: string, startedAt: string | null, lastActiveAt: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null, template: { __typename: 'Template', id: string, name: string } } | null };

export type CapsulesQueryVariables = Exact<{
  filter?: CapsuleFilter | null | undefined;
  first?: number | null | undefined;
  after?: string | null | undefined;
}>;


export type CapsulesQuery = { __typename: 'Query', capsules: { __typename: 'CapsuleConnection', nodes: Array<{ __typename: 'Capsule', id: string, name: string | null, state: CapsuleState, vcpus: number, memoryMib: number, diskMib: number, timeoutSec: number, autoResume: boolean, labels: Record<string, string>, createdAt: string, startedAt: string | null, lastActiveAt: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null, template: { __typename: 'Template', id: string, name: string } }>, pageInfo: { __typename: 'PageInfo', hasNextPage: boolean, endCursor: string | null } } };

export type TemplatesQueryVariables = Exact<{
  filter?: TemplateFilter | null | undefined;
  first?: number | null | undefined;
  after?: string | null | undefined;
}>;


export type TemplatesQuery = { __typename: 'Query', templates: { __typename: 'TemplateConnection', nodes: Array<{ __typename: 'Template', id: string, name: string, kind: TemplateKind, vcpus: number, memoryMib: number, diskMib: number, sizeBytes: string | null, sourceCapsuleId: string | null, createdAt: string }>, pageInfo: { __typename: 'PageInfo', hasNextPage: boolean, endCursor: string | null } } };

export type MetricsQueryVariables = Exact<{
  id: string;
  range: MetricsRange;
}>;


export type MetricsQuery = { __typename: 'Query', capsule: { __typename: 'Capsule', metrics: Array<{ __typename: 'CapsuleMetricPoint', at: string, cpuPercent: number, memoryBytes: string, diskBytes: string }> } | null };

export type CreateCapsuleMutationVariables = Exact<{
  input: CreateCapsuleInput;
}>;


export type CreateCapsuleMutation = { __typename: 'Mutation', createCapsule: { __typename: 'CapsulePayload', capsule: { __typename: 'Capsule', id: string, name: string | null, state: CapsuleState, vcpus: number, memoryMib: number, diskMib: number, timeoutSec: number, autoResume: boolean, labels: Record<string, string>, createdAt: string, startedAt: string | null, lastActiveAt: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null, template: { __typename: 'Template', id: string, name: string } } } };

export type PauseCapsuleMutationVariables = Exact<{
  id: string;
}>;


export type PauseCapsuleMutation = { __typename: 'Mutation', pauseCapsule: { __typename: 'CapsulePayload', capsule: { __typename: 'Capsule', id: string, name: string | null, state: CapsuleState, vcpus: number, memoryMib: number, diskMib: number, timeoutSec: number, autoResume: boolean, labels: Record<string, string>, createdAt: string, startedAt: string | null, lastActiveAt: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null, template: { __typename: 'Template', id: string, name: string } } } };

export type ResumeCapsuleMutationVariables = Exact<{
  id: string;
}>;


export type ResumeCapsuleMutation = { __typename: 'Mutation', resumeCapsule: { __typename: 'CapsulePayload', capsule: { __typename: 'Capsule', id: string, name: string | null, state: CapsuleState, vcpus: number, memoryMib: number, diskMib: number, timeoutSec: number, autoResume: boolean, labels: Record<string, string>, createdAt: string, startedAt: string | null, lastActiveAt: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null, template: { __typename: 'Template', id: string, name: string } } } };

export type DestroyCapsuleMutationVariables = Exact<{
  id: string;
}>;


export type DestroyCapsuleMutation = { __typename: 'Mutation', destroyCapsule: { __typename: 'CapsulePayload', capsule: { __typename: 'Capsule', id: string, name: string | null, state: CapsuleState, vcpus: number, memoryMib: number, diskMib: number, timeoutSec: number, autoResume: boolean, labels: Record<string, string>, createdAt: string, startedAt: string | null, lastActiveAt: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null, template: { __typename: 'Template', id: string, name: string } } } };

export type PingCapsuleMutationVariables = Exact<{
  id: string;
}>;


export type PingCapsuleMutation = { __typename: 'Mutation', pingCapsule: { __typename: 'CapsulePayload', capsule: { __typename: 'Capsule', id: string, name: string | null, state: CapsuleState, vcpus: number, memoryMib: number, diskMib: number, timeoutSec: number, autoResume: boolean, labels: Record<string, string>, createdAt: string, startedAt: string | null, lastActiveAt: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null, template: { __typename: 'Template', id: string, name: string } } } };

export type SetCapsuleTimeoutMutationVariables = Exact<{
  id: string;
  timeoutSec: number;
}>;


export type SetCapsuleTimeoutMutation = { __typename: 'Mutation', setCapsuleTimeout: { __typename: 'CapsulePayload', capsule: { __typename: 'Capsule', id: string, name: string | null, state: CapsuleState, vcpus: number, memoryMib: number, diskMib: number, timeoutSec: number, autoResume: boolean, labels: Record<string, string>, createdAt: string, startedAt: string | null, lastActiveAt: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null, template: { __typename: 'Template', id: string, name: string } } } };

export type SetCapsuleLabelsMutationVariables = Exact<{
  id: string;
  labels: Record<string, string>;
}>;


export type SetCapsuleLabelsMutation = { __typename: 'Mutation', setCapsuleLabels: { __typename: 'CapsulePayload', capsule: { __typename: 'Capsule', id: string, name: string | null, state: CapsuleState, vcpus: number, memoryMib: number, diskMib: number, timeoutSec: number, autoResume: boolean, labels: Record<string, string>, createdAt: string, startedAt: string | null, lastActiveAt: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null, template: { __typename: 'Template', id: string, name: string } } } };

export type ForkCapsuleMutationVariables = Exact<{
  id: string;
  count?: number | null | undefined;
  inheritSecrets?: boolean | null | undefined;
  idempotencyKey?: string | null | undefined;
}>;


export type ForkCapsuleMutation = { __typename: 'Mutation', forkCapsule: { __typename: 'ForkPayload', capsules: Array<{ __typename: 'Capsule', id: string, name: string | null, state: CapsuleState, vcpus: number, memoryMib: number, diskMib: number, timeoutSec: number, autoResume: boolean, labels: Record<string, string>, createdAt: string, startedAt: string | null, lastActiveAt: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null, template: { __typename: 'Template', id: string, name: string } }> } };

export type SnapshotCapsuleMutationVariables = Exact<{
  id: string;
  name: string;
  overwrite?: boolean | null | undefined;
  idempotencyKey?: string | null | undefined;
}>;


export type SnapshotCapsuleMutation = { __typename: 'Mutation', snapshotCapsule: { __typename: 'TemplatePayload', template: { __typename: 'Template', id: string, name: string, kind: TemplateKind, vcpus: number, memoryMib: number, diskMib: number, sizeBytes: string | null, sourceCapsuleId: string | null, createdAt: string } } };

export type DeleteTemplateMutationVariables = Exact<{
  id: string;
}>;


export type DeleteTemplateMutation = { __typename: 'Mutation', deleteTemplate: { __typename: 'DeleteTemplatePayload', deletedId: string } };

export type WatchCapsuleSubscriptionVariables = Exact<{
  id: string;
}>;


export type WatchCapsuleSubscription = { __typename: 'Subscription', capsule: { __typename: 'Capsule', id: string, name: string | null, state: CapsuleState, vcpus: number, memoryMib: number, diskMib: number, timeoutSec: number, autoResume: boolean, labels: Record<string, string>, createdAt: string, startedAt: string | null, lastActiveAt: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null, template: { __typename: 'Template', id: string, name: string } } };

export type WatchCapsulesSubscriptionVariables = Exact<{
  filter?: CapsuleFilter | null | undefined;
}>;


export type WatchCapsulesSubscription = { __typename: 'Subscription', capsules: { __typename: 'CapsuleChange', removedId: string | null, capsule: { __typename: 'Capsule', id: string, name: string | null, state: CapsuleState, vcpus: number, memoryMib: number, diskMib: number, timeoutSec: number, autoResume: boolean, labels: Record<string, string>, createdAt: string, startedAt: string | null, lastActiveAt: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null, template: { __typename: 'Template', id: string, name: string } } | null } };

export type WatchMetricsSubscriptionVariables = Exact<{
  id: string;
  range: MetricsRange;
}>;


export type WatchMetricsSubscription = { __typename: 'Subscription', capsuleMetrics: { __typename: 'CapsuleMetricPoint', at: string, cpuPercent: number, memoryBytes: string, diskBytes: string } };

export type FileEntryFragment = { __typename: 'FileEntry', name: string, path: string, kind: FileKind, size: string, mode: number, owner: string, group: string, modifiedAt: string, symlinkTarget: string | null };

export type ListDirectoryQueryVariables = Exact<{
  id: string;
  path: string;
}>;


export type ListDirectoryQuery = { __typename: 'Query', capsule: { __typename: 'Capsule', files: Array<{ __typename: 'FileEntry', name: string, path: string, kind: FileKind, size: string, mode: number, owner: string, group: string, modifiedAt: string, symlinkTarget: string | null }> } | null };

export type MakeDirMutationVariables = Exact<{
  capsuleId: string;
  path: string;
  user?: string | null | undefined;
}>;


export type MakeDirMutation = { __typename: 'Mutation', makeDir: { __typename: 'FilePayload', entry: { __typename: 'FileEntry', name: string, path: string, kind: FileKind, size: string, mode: number, owner: string, group: string, modifiedAt: string, symlinkTarget: string | null } | null } };

export type MovePathMutationVariables = Exact<{
  capsuleId: string;
  from: string;
  to: string;
  user?: string | null | undefined;
}>;


export type MovePathMutation = { __typename: 'Mutation', movePath: { __typename: 'FilePayload', entry: { __typename: 'FileEntry', name: string, path: string, kind: FileKind, size: string, mode: number, owner: string, group: string, modifiedAt: string, symlinkTarget: string | null } | null } };

export type RemovePathMutationVariables = Exact<{
  capsuleId: string;
  path: string;
  user?: string | null | undefined;
}>;


export type RemovePathMutation = { __typename: 'Mutation', removePath: { __typename: 'FilePayload', entry: { __typename: 'FileEntry', name: string, path: string, kind: FileKind, size: string, mode: number, owner: string, group: string, modifiedAt: string, symlinkTarget: string | null } | null } };

export type CreateFileUrlMutationVariables = Exact<{
  capsuleId: string;
  path: string;
  method: FileMethod;
  expiresInSec: number;
  user?: string | null | undefined;
}>;


export type CreateFileUrlMutation = { __typename: 'Mutation', createFileUrl: { __typename: 'FileUrlPayload', url: string, expiresAt: string } };

export type WatchDirectorySubscriptionVariables = Exact<{
  capsuleId: string;
  path: string;
  recursive?: boolean | null | undefined;
  user?: string | null | undefined;
}>;


export type WatchDirectorySubscription = { __typename: 'Subscription', event:
    | { __typename: 'FileChange', kind: FileChangeKind, path: string, fileKind: FileKind, movedFrom: string | null }
    | { __typename: 'WatchOverflow', path: string }
    | { __typename: 'WatchReady', path: string }
   };

export type PortsQueryVariables = Exact<{
  id: string;
}>;


export type PortsQuery = { __typename: 'Query', capsule: { __typename: 'Capsule', ports: Array<{ __typename: 'Port', number: number, process: string | null, since: string, public: boolean }> } | null };

export type PortUrlQueryVariables = Exact<{
  id: string;
  port: number;
}>;


export type PortUrlQuery = { __typename: 'Query', capsule: { __typename: 'Capsule', url: string } | null };

export type CreatePreviewUrlMutationVariables = Exact<{
  capsuleId: string;
  port: number;
  expiresInSec: number;
}>;


export type CreatePreviewUrlMutation = { __typename: 'Mutation', createPreviewUrl: { __typename: 'PreviewUrlPayload', url: string, expiresAt: string } };

export type SetPortPublicMutationVariables = Exact<{
  capsuleId: string;
  port: number;
  public: boolean;
}>;


export type SetPortPublicMutation = { __typename: 'Mutation', setPortPublic: { __typename: 'CapsulePayload', capsule: { __typename: 'Capsule', publicPorts: Array<number> } } };

export type ProcessFragment = { __typename: 'Process', pid: number, tag: string, command: string, user: string, cwd: string | null, startedAt: string, pty: boolean, running: boolean, exitCode: number | null, signal: string | null };

type ProcessEvent_ProcessExited_Fragment = { __typename: 'ProcessExited', exitCode: number | null, signal: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null };

type ProcessEvent_ProcessGap_Fragment = { __typename: 'ProcessGap', stream: OutputStream, from: string, to: string };

type ProcessEvent_ProcessOutput_Fragment = { __typename: 'ProcessOutput', stream: OutputStream, sequence: string, data: string };

type ProcessEvent_ProcessStarted_Fragment = { __typename: 'ProcessStarted', pid: number, tag: string };

type ProcessEvent_PtyResized_Fragment = { __typename: 'PtyResized' };

export type ProcessEventFragment =
  | ProcessEvent_ProcessExited_Fragment
  | ProcessEvent_ProcessGap_Fragment
  | ProcessEvent_ProcessOutput_Fragment
  | ProcessEvent_ProcessStarted_Fragment
  | ProcessEvent_PtyResized_Fragment
;

export type ProcessesQueryVariables = Exact<{
  id: string;
}>;


export type ProcessesQuery = { __typename: 'Query', capsule: { __typename: 'Capsule', processes: Array<{ __typename: 'Process', pid: number, tag: string, command: string, user: string, cwd: string | null, startedAt: string, pty: boolean, running: boolean, exitCode: number | null, signal: string | null }> } | null };

export type StartProcessMutationVariables = Exact<{
  input: ExecInput;
}>;


export type StartProcessMutation = { __typename: 'Mutation', startProcess: { __typename: 'ProcessPayload', process: { __typename: 'Process', pid: number, tag: string, command: string, user: string, cwd: string | null, startedAt: string, pty: boolean, running: boolean, exitCode: number | null, signal: string | null } } };

export type SignalProcessMutationVariables = Exact<{
  capsuleId: string;
  selector: string;
  signal: Signal;
}>;


export type SignalProcessMutation = { __typename: 'Mutation', signalProcess: { __typename: 'ProcessPayload', process: { __typename: 'Process', pid: number, tag: string, command: string, user: string, cwd: string | null, startedAt: string, pty: boolean, running: boolean, exitCode: number | null, signal: string | null } } };

export type WriteStdinMutationVariables = Exact<{
  capsuleId: string;
  selector: string;
  sequence: string;
  data: string;
}>;


export type WriteStdinMutation = { __typename: 'Mutation', writeStdin: { __typename: 'InputPayload', nextSequence: string } };

export type CloseStdinMutationVariables = Exact<{
  capsuleId: string;
  selector: string;
}>;


export type CloseStdinMutation = { __typename: 'Mutation', closeStdin: { __typename: 'InputPayload', nextSequence: string } };

export type OpenPtyMutationVariables = Exact<{
  input: OpenPtyInput;
}>;


export type OpenPtyMutation = { __typename: 'Mutation', openPty: { __typename: 'PtyPayload', pty: { __typename: 'Pty', pid: number, tag: string, columns: number, rows: number } } };

export type WritePtyMutationVariables = Exact<{
  capsuleId: string;
  tag: string;
  sequence: string;
  data: string;
}>;


export type WritePtyMutation = { __typename: 'Mutation', writePty: { __typename: 'InputPayload', nextSequence: string } };

export type ResizePtyMutationVariables = Exact<{
  capsuleId: string;
  tag: string;
  columns: number;
  rows: number;
}>;


export type ResizePtyMutation = { __typename: 'Mutation', resizePty: { __typename: 'PtyPayload', pty: { __typename: 'Pty', tag: string, columns: number, rows: number } } };

export type ClosePtyMutationVariables = Exact<{
  capsuleId: string;
  tag: string;
}>;


export type ClosePtyMutation = { __typename: 'Mutation', closePty: { __typename: 'PtyPayload', pty: { __typename: 'Pty', tag: string } } };

export type ExecSubscriptionVariables = Exact<{
  input: ExecInput;
}>;


export type ExecSubscription = { __typename: 'Subscription', event:
    | { __typename: 'ProcessExited', exitCode: number | null, signal: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null }
    | { __typename: 'ProcessGap', stream: OutputStream, from: string, to: string }
    | { __typename: 'ProcessOutput', stream: OutputStream, sequence: string, data: string }
    | { __typename: 'ProcessStarted', pid: number, tag: string }
    | { __typename: 'PtyResized' }
   };

export type ProcessOutputSubscriptionVariables = Exact<{
  capsuleId: string;
  selector: string;
  after?: OutputCursor | null | undefined;
}>;


export type ProcessOutputSubscription = { __typename: 'Subscription', event:
    | { __typename: 'ProcessExited', exitCode: number | null, signal: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null }
    | { __typename: 'ProcessGap', stream: OutputStream, from: string, to: string }
    | { __typename: 'ProcessOutput', stream: OutputStream, sequence: string, data: string }
    | { __typename: 'ProcessStarted', pid: number, tag: string }
    | { __typename: 'PtyResized' }
   };

export type PtyOutputSubscriptionVariables = Exact<{
  capsuleId: string;
  tag: string;
  after?: string | null | undefined;
}>;


export type PtyOutputSubscription = { __typename: 'Subscription', event:
    | { __typename: 'ProcessExited', exitCode: number | null, signal: string | null, cause: { __typename: 'CapsuleCause', code: string, message: string } | null }
    | { __typename: 'ProcessGap', stream: OutputStream, from: string, to: string }
    | { __typename: 'ProcessOutput', stream: OutputStream, sequence: string, data: string }
    | { __typename: 'ProcessStarted', pid: number, tag: string }
    | { __typename: 'PtyResized' }
   };

export const CapsuleFragmentDoc = gql`
    fragment Capsule on Capsule {
  id
  name
  state
  cause {
    code
    message
  }
  template {
    id
    name
  }
  vcpus
  memoryMib
  diskMib
  timeoutSec
  autoResume
  labels
  createdAt
  startedAt
  lastActiveAt
}
    `;
export const TemplateFragmentDoc = gql`
    fragment Template on Template {
  id
  name
  kind
  vcpus
  memoryMib
  diskMib
  sizeBytes
  sourceCapsuleId
  createdAt
}
    `;
export const MetricPointFragmentDoc = gql`
    fragment MetricPoint on CapsuleMetricPoint {
  at
  cpuPercent
  memoryBytes
  diskBytes
}
    `;
export const FileEntryFragmentDoc = gql`
    fragment FileEntry on FileEntry {
  name
  path
  kind
  size
  mode
  owner
  group
  modifiedAt
  symlinkTarget
}
    `;
export const ProcessFragmentDoc = gql`
    fragment Process on Process {
  pid
  tag
  command
  user
  cwd
  startedAt
  pty
  running
  exitCode
  signal
}
    `;
export const ProcessEventFragmentDoc = gql`
    fragment ProcessEvent on ProcessEvent {
  __typename
  ... on ProcessStarted {
    pid
    tag
  }
  ... on ProcessOutput {
    stream
    sequence
    data
  }
  ... on ProcessGap {
    stream
    from
    to
  }
  ... on ProcessExited {
    exitCode
    signal
    cause {
      code
      message
    }
  }
}
    `;
export const ViewerDocument = gql`
    query viewer {
  viewer {
    user {
      id
      name
      email
    }
    team {
      id
      name
      slug
    }
    apiKey {
      id
      name
      prefix
      expiresAt
    }
  }
}
    `;
export const CapsuleDocument = gql`
    query capsule($id: ID!) {
  capsule(id: $id) {
    ...Capsule
  }
}
    ${CapsuleFragmentDoc}`;
export const CapsulesDocument = gql`
    query capsules($filter: CapsuleFilter, $first: Int, $after: String) {
  capsules(filter: $filter, first: $first, after: $after) {
    nodes {
      ...Capsule
    }
    pageInfo {
      hasNextPage
      endCursor
    }
  }
}
    ${CapsuleFragmentDoc}`;
export const TemplatesDocument = gql`
    query templates($filter: TemplateFilter, $first: Int, $after: String) {
  templates(filter: $filter, first: $first, after: $after) {
    nodes {
      ...Template
    }
    pageInfo {
      hasNextPage
      endCursor
    }
  }
}
    ${TemplateFragmentDoc}`;
export const MetricsDocument = gql`
    query metrics($id: ID!, $range: MetricsRange!) {
  capsule(id: $id) {
    metrics(range: $range) {
      ...MetricPoint
    }
  }
}
    ${MetricPointFragmentDoc}`;
export const CreateCapsuleDocument = gql`
    mutation createCapsule($input: CreateCapsuleInput!) {
  createCapsule(input: $input) {
    capsule {
      ...Capsule
    }
  }
}
    ${CapsuleFragmentDoc}`;
export const PauseCapsuleDocument = gql`
    mutation pauseCapsule($id: ID!) {
  pauseCapsule(id: $id) {
    capsule {
      ...Capsule
    }
  }
}
    ${CapsuleFragmentDoc}`;
export const ResumeCapsuleDocument = gql`
    mutation resumeCapsule($id: ID!) {
  resumeCapsule(id: $id) {
    capsule {
      ...Capsule
    }
  }
}
    ${CapsuleFragmentDoc}`;
export const DestroyCapsuleDocument = gql`
    mutation destroyCapsule($id: ID!) {
  destroyCapsule(id: $id) {
    capsule {
      ...Capsule
    }
  }
}
    ${CapsuleFragmentDoc}`;
export const PingCapsuleDocument = gql`
    mutation pingCapsule($id: ID!) {
  pingCapsule(id: $id) {
    capsule {
      ...Capsule
    }
  }
}
    ${CapsuleFragmentDoc}`;
export const SetCapsuleTimeoutDocument = gql`
    mutation setCapsuleTimeout($id: ID!, $timeoutSec: Int!) {
  setCapsuleTimeout(id: $id, timeoutSec: $timeoutSec) {
    capsule {
      ...Capsule
    }
  }
}
    ${CapsuleFragmentDoc}`;
export const SetCapsuleLabelsDocument = gql`
    mutation setCapsuleLabels($id: ID!, $labels: Labels!) {
  setCapsuleLabels(id: $id, labels: $labels) {
    capsule {
      ...Capsule
    }
  }
}
    ${CapsuleFragmentDoc}`;
export const ForkCapsuleDocument = gql`
    mutation forkCapsule($id: ID!, $count: Int, $inheritSecrets: Boolean, $idempotencyKey: String) {
  forkCapsule(
    id: $id
    count: $count
    inheritSecrets: $inheritSecrets
    idempotencyKey: $idempotencyKey
  ) {
    capsules {
      ...Capsule
    }
  }
}
    ${CapsuleFragmentDoc}`;
export const SnapshotCapsuleDocument = gql`
    mutation snapshotCapsule($id: ID!, $name: String!, $overwrite: Boolean, $idempotencyKey: String) {
  snapshotCapsule(
    id: $id
    name: $name
    overwrite: $overwrite
    idempotencyKey: $idempotencyKey
  ) {
    template {
      ...Template
    }
  }
}
    ${TemplateFragmentDoc}`;
export const DeleteTemplateDocument = gql`
    mutation deleteTemplate($id: ID!) {
  deleteTemplate(id: $id) {
    deletedId
  }
}
    `;
export const WatchCapsuleDocument = gql`
    subscription watchCapsule($id: ID!) {
  capsule(id: $id) {
    ...Capsule
  }
}
    ${CapsuleFragmentDoc}`;
export const WatchCapsulesDocument = gql`
    subscription watchCapsules($filter: CapsuleFilter) {
  capsules(filter: $filter) {
    capsule {
      ...Capsule
    }
    removedId
  }
}
    ${CapsuleFragmentDoc}`;
export const WatchMetricsDocument = gql`
    subscription watchMetrics($id: ID!, $range: MetricsRange!) {
  capsuleMetrics(id: $id, range: $range) {
    ...MetricPoint
  }
}
    ${MetricPointFragmentDoc}`;
export const ListDirectoryDocument = gql`
    query listDirectory($id: ID!, $path: String!) {
  capsule(id: $id) {
    files(path: $path) {
      ...FileEntry
    }
  }
}
    ${FileEntryFragmentDoc}`;
export const MakeDirDocument = gql`
    mutation makeDir($capsuleId: ID!, $path: String!, $user: String) {
  makeDir(capsuleId: $capsuleId, path: $path, user: $user) {
    entry {
      ...FileEntry
    }
  }
}
    ${FileEntryFragmentDoc}`;
export const MovePathDocument = gql`
    mutation movePath($capsuleId: ID!, $from: String!, $to: String!, $user: String) {
  movePath(capsuleId: $capsuleId, from: $from, to: $to, user: $user) {
    entry {
      ...FileEntry
    }
  }
}
    ${FileEntryFragmentDoc}`;
export const RemovePathDocument = gql`
    mutation removePath($capsuleId: ID!, $path: String!, $user: String) {
  removePath(capsuleId: $capsuleId, path: $path, user: $user) {
    entry {
      ...FileEntry
    }
  }
}
    ${FileEntryFragmentDoc}`;
export const CreateFileUrlDocument = gql`
    mutation createFileUrl($capsuleId: ID!, $path: String!, $method: FileMethod!, $expiresInSec: Int!, $user: String) {
  createFileUrl(
    capsuleId: $capsuleId
    path: $path
    method: $method
    expiresInSec: $expiresInSec
    user: $user
  ) {
    url
    expiresAt
  }
}
    `;
export const WatchDirectoryDocument = gql`
    subscription watchDirectory($capsuleId: ID!, $path: String!, $recursive: Boolean, $user: String) {
  event: watchDirectory(
    capsuleId: $capsuleId
    path: $path
    recursive: $recursive
    user: $user
  ) {
    __typename
    ... on WatchReady {
      path
    }
    ... on FileChange {
      kind
      path
      fileKind
      movedFrom
    }
    ... on WatchOverflow {
      path
    }
  }
}
    `;
export const PortsDocument = gql`
    query ports($id: ID!) {
  capsule(id: $id) {
    ports {
      number
      process
      since
      public
    }
  }
}
    `;
export const PortUrlDocument = gql`
    query portUrl($id: ID!, $port: Int!) {
  capsule(id: $id) {
    url(port: $port)
  }
}
    `;
export const CreatePreviewUrlDocument = gql`
    mutation createPreviewUrl($capsuleId: ID!, $port: Int!, $expiresInSec: Int!) {
  createPreviewUrl(
    capsuleId: $capsuleId
    port: $port
    expiresInSec: $expiresInSec
  ) {
    url
    expiresAt
  }
}
    `;
export const SetPortPublicDocument = gql`
    mutation setPortPublic($capsuleId: ID!, $port: Int!, $public: Boolean!) {
  setPortPublic(capsuleId: $capsuleId, port: $port, public: $public) {
    capsule {
      publicPorts
    }
  }
}
    `;
export const ProcessesDocument = gql`
    query processes($id: ID!) {
  capsule(id: $id) {
    processes {
      ...Process
    }
  }
}
    ${ProcessFragmentDoc}`;
export const StartProcessDocument = gql`
    mutation startProcess($input: ExecInput!) {
  startProcess(input: $input) {
    process {
      ...Process
    }
  }
}
    ${ProcessFragmentDoc}`;
export const SignalProcessDocument = gql`
    mutation signalProcess($capsuleId: ID!, $selector: String!, $signal: Signal!) {
  signalProcess(capsuleId: $capsuleId, selector: $selector, signal: $signal) {
    process {
      ...Process
    }
  }
}
    ${ProcessFragmentDoc}`;
export const WriteStdinDocument = gql`
    mutation writeStdin($capsuleId: ID!, $selector: String!, $sequence: BigInt!, $data: Base64!) {
  writeStdin(
    capsuleId: $capsuleId
    selector: $selector
    sequence: $sequence
    data: $data
  ) {
    nextSequence
  }
}
    `;
export const CloseStdinDocument = gql`
    mutation closeStdin($capsuleId: ID!, $selector: String!) {
  closeStdin(capsuleId: $capsuleId, selector: $selector) {
    nextSequence
  }
}
    `;
export const OpenPtyDocument = gql`
    mutation openPty($input: OpenPtyInput!) {
  openPty(input: $input) {
    pty {
      pid
      tag
      columns
      rows
    }
  }
}
    `;
export const WritePtyDocument = gql`
    mutation writePty($capsuleId: ID!, $tag: String!, $sequence: BigInt!, $data: Base64!) {
  writePty(capsuleId: $capsuleId, tag: $tag, sequence: $sequence, data: $data) {
    nextSequence
  }
}
    `;
export const ResizePtyDocument = gql`
    mutation resizePty($capsuleId: ID!, $tag: String!, $columns: Int!, $rows: Int!) {
  resizePty(capsuleId: $capsuleId, tag: $tag, columns: $columns, rows: $rows) {
    pty {
      tag
      columns
      rows
    }
  }
}
    `;
export const ClosePtyDocument = gql`
    mutation closePty($capsuleId: ID!, $tag: String!) {
  closePty(capsuleId: $capsuleId, tag: $tag) {
    pty {
      tag
    }
  }
}
    `;
export const ExecDocument = gql`
    subscription exec($input: ExecInput!) {
  event: exec(input: $input) {
    ...ProcessEvent
  }
}
    ${ProcessEventFragmentDoc}`;
export const ProcessOutputDocument = gql`
    subscription processOutput($capsuleId: ID!, $selector: String!, $after: OutputCursor) {
  event: processOutput(capsuleId: $capsuleId, selector: $selector, after: $after) {
    ...ProcessEvent
  }
}
    ${ProcessEventFragmentDoc}`;
export const PtyOutputDocument = gql`
    subscription ptyOutput($capsuleId: ID!, $tag: String!, $after: BigInt) {
  event: ptyOutput(capsuleId: $capsuleId, tag: $tag, after: $after) {
    ...ProcessEvent
  }
}
    ${ProcessEventFragmentDoc}`;
export type Requester<C = {}> = <R, V>(doc: DocumentNode, vars?: V, options?: C) => Promise<R> | AsyncIterable<R>
export function getSdk<C>(requester: Requester<C>) {
  return {
    viewer(variables?: ViewerQueryVariables, options?: C): Promise<ViewerQuery> {
      return requester<ViewerQuery, ViewerQueryVariables>(ViewerDocument, variables, options) as Promise<ViewerQuery>;
    },
    capsule(variables: CapsuleQueryVariables, options?: C): Promise<CapsuleQuery> {
      return requester<CapsuleQuery, CapsuleQueryVariables>(CapsuleDocument, variables, options) as Promise<CapsuleQuery>;
    },
    capsules(variables?: CapsulesQueryVariables, options?: C): Promise<CapsulesQuery> {
      return requester<CapsulesQuery, CapsulesQueryVariables>(CapsulesDocument, variables, options) as Promise<CapsulesQuery>;
    },
    templates(variables?: TemplatesQueryVariables, options?: C): Promise<TemplatesQuery> {
      return requester<TemplatesQuery, TemplatesQueryVariables>(TemplatesDocument, variables, options) as Promise<TemplatesQuery>;
    },
    metrics(variables: MetricsQueryVariables, options?: C): Promise<MetricsQuery> {
      return requester<MetricsQuery, MetricsQueryVariables>(MetricsDocument, variables, options) as Promise<MetricsQuery>;
    },
    createCapsule(variables: CreateCapsuleMutationVariables, options?: C): Promise<CreateCapsuleMutation> {
      return requester<CreateCapsuleMutation, CreateCapsuleMutationVariables>(CreateCapsuleDocument, variables, options) as Promise<CreateCapsuleMutation>;
    },
    pauseCapsule(variables: PauseCapsuleMutationVariables, options?: C): Promise<PauseCapsuleMutation> {
      return requester<PauseCapsuleMutation, PauseCapsuleMutationVariables>(PauseCapsuleDocument, variables, options) as Promise<PauseCapsuleMutation>;
    },
    resumeCapsule(variables: ResumeCapsuleMutationVariables, options?: C): Promise<ResumeCapsuleMutation> {
      return requester<ResumeCapsuleMutation, ResumeCapsuleMutationVariables>(ResumeCapsuleDocument, variables, options) as Promise<ResumeCapsuleMutation>;
    },
    destroyCapsule(variables: DestroyCapsuleMutationVariables, options?: C): Promise<DestroyCapsuleMutation> {
      return requester<DestroyCapsuleMutation, DestroyCapsuleMutationVariables>(DestroyCapsuleDocument, variables, options) as Promise<DestroyCapsuleMutation>;
    },
    pingCapsule(variables: PingCapsuleMutationVariables, options?: C): Promise<PingCapsuleMutation> {
      return requester<PingCapsuleMutation, PingCapsuleMutationVariables>(PingCapsuleDocument, variables, options) as Promise<PingCapsuleMutation>;
    },
    setCapsuleTimeout(variables: SetCapsuleTimeoutMutationVariables, options?: C): Promise<SetCapsuleTimeoutMutation> {
      return requester<SetCapsuleTimeoutMutation, SetCapsuleTimeoutMutationVariables>(SetCapsuleTimeoutDocument, variables, options) as Promise<SetCapsuleTimeoutMutation>;
    },
    setCapsuleLabels(variables: SetCapsuleLabelsMutationVariables, options?: C): Promise<SetCapsuleLabelsMutation> {
      return requester<SetCapsuleLabelsMutation, SetCapsuleLabelsMutationVariables>(SetCapsuleLabelsDocument, variables, options) as Promise<SetCapsuleLabelsMutation>;
    },
    forkCapsule(variables: ForkCapsuleMutationVariables, options?: C): Promise<ForkCapsuleMutation> {
      return requester<ForkCapsuleMutation, ForkCapsuleMutationVariables>(ForkCapsuleDocument, variables, options) as Promise<ForkCapsuleMutation>;
    },
    snapshotCapsule(variables: SnapshotCapsuleMutationVariables, options?: C): Promise<SnapshotCapsuleMutation> {
      return requester<SnapshotCapsuleMutation, SnapshotCapsuleMutationVariables>(SnapshotCapsuleDocument, variables, options) as Promise<SnapshotCapsuleMutation>;
    },
    deleteTemplate(variables: DeleteTemplateMutationVariables, options?: C): Promise<DeleteTemplateMutation> {
      return requester<DeleteTemplateMutation, DeleteTemplateMutationVariables>(DeleteTemplateDocument, variables, options) as Promise<DeleteTemplateMutation>;
    },
    watchCapsule(variables: WatchCapsuleSubscriptionVariables, options?: C): AsyncIterable<WatchCapsuleSubscription> {
      return requester<WatchCapsuleSubscription, WatchCapsuleSubscriptionVariables>(WatchCapsuleDocument, variables, options) as AsyncIterable<WatchCapsuleSubscription>;
    },
    watchCapsules(variables?: WatchCapsulesSubscriptionVariables, options?: C): AsyncIterable<WatchCapsulesSubscription> {
      return requester<WatchCapsulesSubscription, WatchCapsulesSubscriptionVariables>(WatchCapsulesDocument, variables, options) as AsyncIterable<WatchCapsulesSubscription>;
    },
    watchMetrics(variables: WatchMetricsSubscriptionVariables, options?: C): AsyncIterable<WatchMetricsSubscription> {
      return requester<WatchMetricsSubscription, WatchMetricsSubscriptionVariables>(WatchMetricsDocument, variables, options) as AsyncIterable<WatchMetricsSubscription>;
    },
    listDirectory(variables: ListDirectoryQueryVariables, options?: C): Promise<ListDirectoryQuery> {
      return requester<ListDirectoryQuery, ListDirectoryQueryVariables>(ListDirectoryDocument, variables, options) as Promise<ListDirectoryQuery>;
    },
    makeDir(variables: MakeDirMutationVariables, options?: C): Promise<MakeDirMutation> {
      return requester<MakeDirMutation, MakeDirMutationVariables>(MakeDirDocument, variables, options) as Promise<MakeDirMutation>;
    },
    movePath(variables: MovePathMutationVariables, options?: C): Promise<MovePathMutation> {
      return requester<MovePathMutation, MovePathMutationVariables>(MovePathDocument, variables, options) as Promise<MovePathMutation>;
    },
    removePath(variables: RemovePathMutationVariables, options?: C): Promise<RemovePathMutation> {
      return requester<RemovePathMutation, RemovePathMutationVariables>(RemovePathDocument, variables, options) as Promise<RemovePathMutation>;
    },
    createFileUrl(variables: CreateFileUrlMutationVariables, options?: C): Promise<CreateFileUrlMutation> {
      return requester<CreateFileUrlMutation, CreateFileUrlMutationVariables>(CreateFileUrlDocument, variables, options) as Promise<CreateFileUrlMutation>;
    },
    watchDirectory(variables: WatchDirectorySubscriptionVariables, options?: C): AsyncIterable<WatchDirectorySubscription> {
      return requester<WatchDirectorySubscription, WatchDirectorySubscriptionVariables>(WatchDirectoryDocument, variables, options) as AsyncIterable<WatchDirectorySubscription>;
    },
    ports(variables: PortsQueryVariables, options?: C): Promise<PortsQuery> {
      return requester<PortsQuery, PortsQueryVariables>(PortsDocument, variables, options) as Promise<PortsQuery>;
    },
    portUrl(variables: PortUrlQueryVariables, options?: C): Promise<PortUrlQuery> {
      return requester<PortUrlQuery, PortUrlQueryVariables>(PortUrlDocument, variables, options) as Promise<PortUrlQuery>;
    },
    createPreviewUrl(variables: CreatePreviewUrlMutationVariables, options?: C): Promise<CreatePreviewUrlMutation> {
      return requester<CreatePreviewUrlMutation, CreatePreviewUrlMutationVariables>(CreatePreviewUrlDocument, variables, options) as Promise<CreatePreviewUrlMutation>;
    },
    setPortPublic(variables: SetPortPublicMutationVariables, options?: C): Promise<SetPortPublicMutation> {
      return requester<SetPortPublicMutation, SetPortPublicMutationVariables>(SetPortPublicDocument, variables, options) as Promise<SetPortPublicMutation>;
    },
    processes(variables: ProcessesQueryVariables, options?: C): Promise<ProcessesQuery> {
      return requester<ProcessesQuery, ProcessesQueryVariables>(ProcessesDocument, variables, options) as Promise<ProcessesQuery>;
    },
    startProcess(variables: StartProcessMutationVariables, options?: C): Promise<StartProcessMutation> {
      return requester<StartProcessMutation, StartProcessMutationVariables>(StartProcessDocument, variables, options) as Promise<StartProcessMutation>;
    },
    signalProcess(variables: SignalProcessMutationVariables, options?: C): Promise<SignalProcessMutation> {
      return requester<SignalProcessMutation, SignalProcessMutationVariables>(SignalProcessDocument, variables, options) as Promise<SignalProcessMutation>;
    },
    writeStdin(variables: WriteStdinMutationVariables, options?: C): Promise<WriteStdinMutation> {
      return requester<WriteStdinMutation, WriteStdinMutationVariables>(WriteStdinDocument, variables, options) as Promise<WriteStdinMutation>;
    },
    closeStdin(variables: CloseStdinMutationVariables, options?: C): Promise<CloseStdinMutation> {
      return requester<CloseStdinMutation, CloseStdinMutationVariables>(CloseStdinDocument, variables, options) as Promise<CloseStdinMutation>;
    },
    openPty(variables: OpenPtyMutationVariables, options?: C): Promise<OpenPtyMutation> {
      return requester<OpenPtyMutation, OpenPtyMutationVariables>(OpenPtyDocument, variables, options) as Promise<OpenPtyMutation>;
    },
    writePty(variables: WritePtyMutationVariables, options?: C): Promise<WritePtyMutation> {
      return requester<WritePtyMutation, WritePtyMutationVariables>(WritePtyDocument, variables, options) as Promise<WritePtyMutation>;
    },
    resizePty(variables: ResizePtyMutationVariables, options?: C): Promise<ResizePtyMutation> {
      return requester<ResizePtyMutation, ResizePtyMutationVariables>(ResizePtyDocument, variables, options) as Promise<ResizePtyMutation>;
    },
    closePty(variables: ClosePtyMutationVariables, options?: C): Promise<ClosePtyMutation> {
      return requester<ClosePtyMutation, ClosePtyMutationVariables>(ClosePtyDocument, variables, options) as Promise<ClosePtyMutation>;
    },
    exec(variables: ExecSubscriptionVariables, options?: C): AsyncIterable<ExecSubscription> {
      return requester<ExecSubscription, ExecSubscriptionVariables>(ExecDocument, variables, options) as AsyncIterable<ExecSubscription>;
    },
    processOutput(variables: ProcessOutputSubscriptionVariables, options?: C): AsyncIterable<ProcessOutputSubscription> {
      return requester<ProcessOutputSubscription, ProcessOutputSubscriptionVariables>(ProcessOutputDocument, variables, options) as AsyncIterable<ProcessOutputSubscription>;
    },
    ptyOutput(variables: PtyOutputSubscriptionVariables, options?: C): AsyncIterable<PtyOutputSubscription> {
      return requester<PtyOutputSubscription, PtyOutputSubscriptionVariables>(PtyOutputDocument, variables, options) as AsyncIterable<PtyOutputSubscription>;
    }
  };
}
export type Sdk = ReturnType<typeof getSdk>;